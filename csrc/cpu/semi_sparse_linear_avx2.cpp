#include "simd_avx2.h"

namespace bigmodel {
namespace {

using Ints = __m256i;

inline Ints load_words(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
inline Ints shifted(Ints words) { return _mm256_srli_epi32(words, 2); }
inline Floats broadcast4(const float* from) { return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(from)); }
// Of each half the element that a word's low two bits say.
inline Floats lanes_of(Floats halves, Ints words) { return _mm256_permutevar_ps(halves, words); }
// v where a word's low two bits are k, else 0.
inline Floats only(Floats v, Ints words, int k) {
  const Ints low = _mm256_and_si256(words, _mm256_set1_epi32(3));
  return _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_cmpeq_epi32(low, _mm256_set1_epi32(k))));
}

}  // namespace
}  // namespace bigmodel

// After the vector type and the operations above:
#include "semi_sparse_linear_vector.h"

namespace bigmodel {
namespace {

// 8 sums of the 16 registers.
template <DType D>
void multiply_rows(const float* x, int64_t rows, const void* values, const uint8_t* index, int64_t count, bool add,
                   float* y) {
  const int64_t panel = rows * kSemiTile;
  while (rows > 0) {
    int64_t done = rows;
    if (rows >= 4) {
      multiply<D, 4, 2>(x, panel, values, index, count, add, y);
      done = 4;
    } else if (rows == 3) {
      multiply<D, 3, 2>(x, panel, values, index, count, add, y);
    } else if (rows == 2) {
      multiply<D, 2, 2>(x, panel, values, index, count, add, y);
    } else {
      multiply<D, 1, 4>(x, panel, values, index, count, add, y);
    }
    rows -= done, x += done * kSemiTile, y += done * kSemiTile;
  }
}

}  // namespace

const SemiKernels semi_kernels_avx2 = {multiply_entry, expand, grad_values<1>};

}  // namespace bigmodel
