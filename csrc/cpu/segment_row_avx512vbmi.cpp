// One row of activations times a matrix in segments, float and int8: sparse_linear's and int8_sparse_linear's
// multiply_row with byte permutations.
//
// Where a row has few entries in a panel, instructions are the limit and not memory. Hence two steps over stretches of
// entries: first each entry's product, 64 at a time and regardless of where rows end, into a buffer; then the rows'
// pieces of that buffer are added up. The second step, which is the longer one, fetches what is far ahead, so that
// memory is busy all the time.
#include <immintrin.h>

#include "int8_sparse_linear.h"
#include "sparse_linear.h"

namespace bigmodel {
namespace {

constexpr int64_t kStretch = 512;  // entries of the buffer (2 KiB), at least the 256 that a segment may have
constexpr int64_t kAhead = 2048;   // entries prefetched ahead: the processor's own prefetching stops at 4 KiB pages
constexpr int64_t kAtOnce = 64;

// A panel's 128 (Wide: 256) activations as four planes of bytes, because bytes are what can be looked up in 128 places.
template <bool Wide>
struct ByteTable {
  static constexpr int kParts = Wide ? 4 : 2;
  __m512i plane[4][kParts];

  explicit ByteTable(const uint32_t* x) {
    alignas(64) uint8_t bytes[kParts * 64];
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) {
      for (int i = 0; i < kParts * 4; ++i)
        _mm_store_si128(
            reinterpret_cast<__m128i*>(bytes + i * 16),
            _mm512_cvtepi32_epi8(_mm512_srli_epi32(_mm512_loadu_si512(x + i * 16), static_cast<unsigned>(8 * b))));
#pragma GCC unroll 4
      for (int i = 0; i < kParts; ++i) plane[b][i] = _mm512_load_si512(bytes + i * 64);
    }
  }

  __m512i byte(int b, __m512i columns) const {
    const __m512i low = _mm512_permutex2var_epi8(plane[b][0], columns, plane[b][1]);
    if (!Wide) return low;
    const __m512i high = _mm512_permutex2var_epi8(plane[b][kParts - 2], columns, plane[b][kParts - 1]);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(columns), low, high);
  }

  // out = the activations of 64 columns.
  void look_up(const uint8_t* col, __m512i (&out)[4]) const {
    // Interleaving works within quarters of a vector: in this order it ends in the entries' own.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i columns = _mm512_permutexvar_epi32(order, _mm512_loadu_si512(col));
    const __m512i b0 = byte(0, columns), b1 = byte(1, columns), b2 = byte(2, columns), b3 = byte(3, columns);
    const __m512i low01 = _mm512_unpacklo_epi8(b0, b1), high01 = _mm512_unpackhi_epi8(b0, b1);
    const __m512i low23 = _mm512_unpacklo_epi8(b2, b3), high23 = _mm512_unpackhi_epi8(b2, b3);
    out[0] = _mm512_unpacklo_epi16(low01, low23);
    out[1] = _mm512_unpackhi_epi16(low01, low23);
    out[2] = _mm512_unpacklo_epi16(high01, high23);
    out[3] = _mm512_unpackhi_epi16(high01, high23);
  }
};

// How weights are read and multiplied. Vectors of sums travel as __m512i.
struct FloatMath {
  static __m512i zero() { return _mm512_setzero_si512(); }
  static __m512i plus(__m512i a, __m512i b) {
    return _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b)));
  }
  static __m512i plus(__m512i a, __mmask16 mask, __m512i b) {
    const __m512 sum = _mm512_castsi512_ps(a);
    return _mm512_castps_si512(_mm512_mask_add_ps(sum, mask, sum, _mm512_castsi512_ps(b)));
  }
  static uint32_t total(__m512i sum) {
    const float total = _mm512_reduce_add_ps(_mm512_castsi512_ps(sum));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_castps_si128(_mm_set_ss(total))));
  }
  static __m512i times(__m512 values, __m512i x) {
    return _mm512_castps_si512(_mm512_mul_ps(values, _mm512_castsi512_ps(x)));
  }
};

struct F32 : FloatMath {
  static constexpr int kBytes = 4;
  static __m512i multiply(const char* values, __m512i x) { return times(_mm512_loadu_ps(values), x); }
};

struct Bf16 : FloatMath {
  static constexpr int kBytes = 2;
  static __m512i multiply(const char* values, __m512i x) {
    const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
    return times(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)), x);
  }
};

struct F16 : FloatMath {
  static constexpr int kBytes = 2;
  static __m512i multiply(const char* values, __m512i x) {
    return times(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values))), x);
  }
};

struct Words {  // of four weights each
  static constexpr int kBytes = 4;
  static __m512i zero() { return _mm512_setzero_si512(); }
  static __m512i plus(__m512i a, __m512i b) { return _mm512_add_epi32(a, b); }
  static __m512i plus(__m512i a, __mmask16 mask, __m512i b) { return _mm512_mask_add_epi32(a, mask, a, b); }
  static uint32_t total(__m512i sum) {  // modulo 2^32: the intrinsic for it adds signed numbers
    uint32_t lanes[16], total = 0;
    _mm512_storeu_si512(lanes, sum);
    for (const uint32_t lane : lanes) total += lane;
    return total;
  }
  static __m512i multiply(const char* values, __m512i x) {
    return _mm512_dpbusd_epi32(zero(), x, _mm512_loadu_si512(values));
  }
};

template <typename Math, bool Wide>
inline __attribute__((always_inline)) void products_of_64(const ByteTable<Wide>& table, const char* values,
                                                          const uint8_t* col, uint32_t* to) {
  __m512i x[4];
  table.look_up(col, x);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) _mm512_storeu_si512(to + j * 16, Math::multiply(values + j * 16 * Math::kBytes, x[j]));
}

// buffer[i - begin] = the product of entry i, from `begin` to `end`; up to 63 behind it are written too.
template <typename Math, bool Wide>
inline __attribute__((always_inline)) void products(const ByteTable<Wide>& table, const Segments& w, int64_t begin,
                                                    int64_t end, uint32_t* buffer) {
  const char* values = static_cast<const char*>(w.values);
  for (int64_t i = begin; i < end; i += kAtOnce, buffer += kAtOnce) {
    if (i + kAtOnce > w.nnz) {  // the matrix ends: 64 entries of which the last are made up
      char last[kAtOnce * Math::kBytes] = {};
      uint8_t columns[kAtOnce] = {};
      __builtin_memcpy(last, values + i * Math::kBytes, static_cast<size_t>((w.nnz - i) * Math::kBytes));
      __builtin_memcpy(columns, w.col + i, static_cast<size_t>(w.nnz - i));
      return products_of_64<Math, Wide>(table, last, columns, buffer);
    }
    products_of_64<Math, Wide>(table, values + i * Math::kBytes, w.col + i, buffer);
  }
}

// As many segments from s on, of `left`, as the buffer holds.
inline int64_t stretch(const int32_t* crow, int64_t s, int64_t left) {
  while (crow[s + left] - crow[s] > kStretch) {
    const int64_t fewer = left * kStretch / (crow[s + left] - crow[s]);  // if they were all of one length
    left = fewer < 1 ? 1 : fewer;
  }
  return left;
}

// A block of one panel into the rows' 16-lane sums.
template <typename Math, bool Wide>
void add_panel(const uint32_t* x, const Segments& w, const int32_t* crow, const int32_t* order, uint32_t* sums) {
  alignas(64) uint32_t buffer[kStretch + kAtOnce];
  const ByteTable<Wide> table(x);
  for (int64_t s = 0; s < w.count;) {
    const int64_t begin = crow[s], stop = s + stretch(crow, s, w.count - s);
    products<Math, Wide>(table, w, begin, crow[stop], buffer);
    const uint32_t* from = buffer;
    const char* values = static_cast<const char*>(w.values) + (begin + kAhead) * Math::kBytes;
    const uint8_t* col = w.col + begin + kAhead;
    for (int32_t at = crow[s]; s < stop; ++s) {
      uint32_t* to = sums + (static_cast<uint32_t>(order[s]) & (kBlockRows - 1)) * 16;
      __m512i sum = _mm512_load_si512(to);
      uint32_t left = static_cast<uint32_t>(crow[s + 1] - at);
      at = crow[s + 1];
      _mm_prefetch(reinterpret_cast<const char*>(col), _MM_HINT_T0);
      _mm_prefetch(values, _MM_HINT_T0);
      values += left * Math::kBytes;
      col += left;
      for (; left > 16; left -= 16, from += 16) {
        sum = Math::plus(sum, _mm512_loadu_si512(from));
        _mm_prefetch(values - left * Math::kBytes + 64, _MM_HINT_T0);
      }
      const __mmask16 rest = static_cast<__mmask16>(_bzhi_u32(0xffff, left));
      _mm512_store_si512(to, Math::plus(sum, rest, _mm512_loadu_si512(from)));
      from += left;
    }
  }
}

// The sums (32 KiB) stay in the first-level cache from panel to panel.
template <typename Math, bool Wide>
void multiply_row(const uint32_t* x, const Segments& w, int64_t n_stride, int64_t order_stride, int64_t panels,
                  int64_t panel, uint32_t* y) {
  alignas(64) uint32_t sums[kBlockRows * 16];
  for (int64_t r = 0; r < w.count; ++r) _mm512_store_si512(sums + r * 16, Math::zero());
  for (int64_t p = 0; p < panels; ++p)
    add_panel<Math, Wide>(x + p * panel, w, w.crow + p * n_stride, w.order + p * order_stride, sums);
  for (int64_t r = 0; r < w.count; ++r) y[r] = Math::total(_mm512_load_si512(sums + r * 16));
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

void sparse_row_avx512vbmi(const float* x, const Segments& w, int64_t n_stride, int64_t order_stride, int64_t panels,
                           int64_t panel, float* y) {
  if (w.dtype == DType::f32) return multiply_row<F32>(x, w, n_stride, order_stride, panels, panel, y);
  if (w.dtype == DType::bf16) return multiply_row<Bf16>(x, w, n_stride, order_stride, panels, panel, y);
  return multiply_row<F16>(x, w, n_stride, order_stride, panels, panel, y);
}

void int8_sparse_row_avx512vbmi(const uint32_t* x, const Segments& w, int64_t n_stride, int64_t order_stride,
                                int64_t panels, int64_t panel, uint32_t* y) {
  multiply_row<Words>(x, w, n_stride, order_stride, panels, panel, y);
}

}  // namespace bigmodel
