#include "simd_avx512.h"

namespace bigmodel {
namespace {

using Ints = __m512i;

inline Ints load_words(const uint8_t* from) { return _mm512_loadu_si512(from); }
inline Ints shifted(Ints words) { return _mm512_srli_epi32(words, 2); }
inline Floats broadcast4(const float* from) { return _mm512_broadcast_f32x4(_mm_loadu_ps(from)); }
// Of each quarter the element that a word's low two bits say.
inline Floats lanes_of(Floats quarters, Ints words) { return _mm512_permutevar_ps(quarters, words); }
// v where a word's low two bits are k, else 0.
inline Floats only(Floats v, Ints words, int k) {
  const Ints low = _mm512_and_si512(words, _mm512_set1_epi32(3));
  return _mm512_maskz_mov_ps(_mm512_cmpeq_epi32_mask(low, _mm512_set1_epi32(k)), v);
}

}  // namespace
}  // namespace bigmodel

// After the vector type and the operations above:
#include "semi_sparse_linear_vector.h"

namespace bigmodel {
namespace {

// 24 sums of the 32 registers.
template <DType D>
void multiply_rows(const float* x, int64_t rows, const void* values, const uint8_t* index, int64_t count, bool add,
                   float* y) {
  const int64_t panel = rows * kSemiTile;
  while (rows > 0) {
    int64_t done = rows;
    if (rows >= 12 && rows != 16) {
      multiply<D, 12, 2>(x, panel, values, index, count, add, y);
      done = 12;
    } else if (rows >= 8) {
      multiply<D, 8, 2>(x, panel, values, index, count, add, y);
      done = 8;
    } else if (rows == 4) {
      multiply<D, 4, 2>(x, panel, values, index, count, add, y);
    } else if (rows == 3) {
      multiply<D, 3, 2>(x, panel, values, index, count, add, y);
    } else if (rows == 2) {
      multiply<D, 2, 2>(x, panel, values, index, count, add, y);
    } else {
      multiply<D, 1, 2>(x, panel, values, index, count, add, y);
    }
    rows -= done, x += done * kSemiTile, y += done * kSemiTile;
  }
}

}  // namespace

const SemiKernels semi_kernels_avx512 = {multiply_entry, expand, grad_values<2>};

}  // namespace bigmodel
