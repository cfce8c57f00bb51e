// Products of a matrix's segments with a single row of activations: what the AVX-512 kernels for float and for int8
// weights share. Included by those two files only; everything is in an anonymous namespace, so each has its own copy.
// segment_row_avx512vbmi.cpp takes their place where bytes can be permuted.
#pragma once

#include <immintrin.h>

#include "segments.h"

namespace bigmodel {
namespace {

// A row of activations' panel in registers, 128 of them each, looked up by permutation instead of gathering.
struct Table {
  __m512i part[8];

  void load(const uint32_t* x) {
    for (int i = 0; i < 8; ++i) part[i] = _mm512_loadu_si512(x + i * 16);
  }

  // x[index & 127]
  __m512i at(__m512i index) const {
    const __mmask16 bit5 = _mm512_test_epi32_mask(index, _mm512_set1_epi32(32));
    const __mmask16 bit6 = _mm512_test_epi32_mask(index, _mm512_set1_epi32(64));
    const __m512i a = _mm512_permutex2var_epi32(part[0], index, part[1]);
    const __m512i b = _mm512_permutex2var_epi32(part[2], index, part[3]);
    const __m512i c = _mm512_permutex2var_epi32(part[4], index, part[5]);
    const __m512i d = _mm512_permutex2var_epi32(part[6], index, part[7]);
    return _mm512_mask_blend_epi32(bit6, _mm512_mask_blend_epi32(bit5, a, b), _mm512_mask_blend_epi32(bit5, c, d));
  }
};

// The rows' 16-lane sums (32 KiB) wait in the first-level cache for the next panel. Entries are prefetched because the
// processor's own prefetching stops at each 4 KiB page.
template <typename Math, bool Wide>
void multiply_row(const uint32_t* x, const Segments& w, int64_t n_stride, int64_t order_stride, int64_t panels,
                  int64_t panel, uint32_t* y) {
  constexpr int64_t kRowAhead = 2048;
  alignas(64) uint32_t sums[kBlockRows * 16];
  for (int64_t r = 0; r < w.count; ++r) Math::store_sum(sums + r * 16, Math::zero());
  const int32_t* crow = w.crow;
  const int32_t* order = w.order;
  for (int64_t p = 0; p < panels; ++p, x += panel, crow += n_stride, order += order_stride) {
    Table low, high;
    low.load(x);
    if (Wide) high.load(x + 128);
    for (int64_t s = 0; s < w.count; ++s) {
      uint32_t* to = sums + (order[s] & (kBlockRows - 1)) * 16;
      typename Math::Vector sum = Math::load_sum(to);
      for (int64_t i = crow[s]; i < crow[s + 1]; i += 16) {
        _mm_prefetch(static_cast<const char*>(w.values) + (i + kRowAhead) * Math::kBytes, _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(w.col) + i + kRowAhead, _MM_HINT_T0);
        const int64_t left = crow[s + 1] - i;
        const __mmask16 mask = static_cast<__mmask16>(left >= 16 ? 0xffff : (1 << left) - 1);
        const __m512i index = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, w.col + i));
        __m512i from = low.at(index);
        if (Wide)
          from = _mm512_mask_blend_epi32(_mm512_test_epi32_mask(index, _mm512_set1_epi32(128)), from, high.at(index));
        sum = Math::add_products(sum, mask, Math::load(w.values, i, mask), from);
      }
      Math::store_sum(to, sum);
    }
  }
  for (int64_t r = 0; r < w.count; ++r) y[r] = Math::total(Math::load_sum(sums + r * 16));
}

template <typename Math>
void multiply_row(const void* x, const Segments& w, int64_t n_stride, int64_t order_stride, int64_t panels,
                  int64_t panel, void* y) {
  const auto* from = static_cast<const uint32_t*>(x);
  auto* to = static_cast<uint32_t*>(y);
  if (panel <= 128) return multiply_row<Math, false>(from, w, n_stride, order_stride, panels, panel, to);
  return multiply_row<Math, true>(from, w, n_stride, order_stride, panels, panel, to);
}

}  // namespace
}  // namespace bigmodel
