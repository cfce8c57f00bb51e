// Work over rows that also sums over them: the gradients of what is added to, or multiplied with, every row.
#pragma once

#include <cstdint>
#include <functional>

#include "../common/view.h"

namespace bigmodel {

// Calls body(begin, end, sums) on blocks of rows that cover [0, rows), each small enough to stay in a cache between two
// looks at it. `sums` is `vectors` rows of `features` floats, to be added to; `out`, of that shape, gets their total.
// Rows are grouped in the same way for any number of threads, so totals are equal bit for bit. Throws std::bad_alloc.
void run_row_slabs(int64_t rows, int64_t features, int vectors, float* out,
                   const std::function<void(int64_t, int64_t, float*)>& body);

// sums[c] += rows[r][c] for r in [begin, end).
using AddRowsKernel = void (*)(const void* rows, DType dtype, int64_t begin, int64_t end, int64_t features,
                               float* sums);
void add_rows_scalar(const void*, DType, int64_t, int64_t, int64_t, float*);
#if defined(__x86_64__)
void add_rows_avx2(const void*, DType, int64_t, int64_t, int64_t, float*);
void add_rows_avx512(const void*, DType, int64_t, int64_t, int64_t, float*);
#endif
void add_rows(const void* rows, DType dtype, int64_t begin, int64_t end, int64_t features, float* sums);

// How many rows make a block of about 32 KiB in float32.
int64_t rows_in_block(int64_t features);

}  // namespace bigmodel
