#include "row_slabs.h"

#include <algorithm>
#include <vector>

#include "../common/parallel.h"
#include "isa.h"

namespace bigmodel {
namespace {

#if defined(__x86_64__)
constexpr Variants<AddRowsKernel> variants = {{add_rows_scalar, add_rows_avx2, add_rows_avx512, nullptr}};
#else
constexpr Variants<AddRowsKernel> variants = {{add_rows_scalar, nullptr, nullptr, nullptr}};
#endif

constexpr int64_t kBlockElements = 8192;
constexpr int64_t kMostSlabs = 16;          // more threads than this would each need sums of their own
constexpr int64_t kSlabElements = 1 << 15;  // below this, waking a second thread costs more than it saves

}  // namespace

int64_t rows_in_block(int64_t features) {
  return std::max<int64_t>(1, kBlockElements / std::max<int64_t>(1, features));
}

void add_rows(const void* rows, DType dtype, int64_t begin, int64_t end, int64_t features, float* sums) {
  variants.pick()(rows, dtype, begin, end, features, sums);
}

void run_row_slabs(int64_t rows, int64_t features, int vectors, float* out,
                   const std::function<void(int64_t, int64_t, float*)>& body) {
  const int64_t width = features * vectors, block = rows_in_block(features);
  const int64_t most = std::max<int64_t>(1, std::min(kMostSlabs, rows * features / kSlabElements));
  const int64_t slab_rows = std::max<int64_t>(1, (rows + most - 1) / most);
  const int64_t slabs = (rows + slab_rows - 1) / slab_rows;
  std::fill(out, out + width, 0.0f);
  std::vector<float> others(static_cast<size_t>(std::max<int64_t>(0, slabs - 1) * width), 0.0f);
  parallel_for(slabs, 1, [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) {
      float* sums = s == 0 ? out : others.data() + (s - 1) * width;
      const int64_t end = std::min(rows, (s + 1) * slab_rows);
      for (int64_t row = s * slab_rows; row < end; row += block) body(row, std::min(end, row + block), sums);
    }
  });
  for (int64_t s = 1; s < slabs; ++s)
    for (int64_t c = 0; c < width; ++c) out[c] += others[static_cast<size_t>((s - 1) * width + c)];
}

}  // namespace bigmodel
