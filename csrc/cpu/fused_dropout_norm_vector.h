// Normalising rows, and back, over whichever vector type simd_<isa>.h has defined before this file is included;
// everything is in an anonymous namespace. A row is in L1 or L2 for its second and third pass.
#pragma once

#include "fused_dropout_norm.h"
#include "row_slabs.h"
#include "wide_vector.h"

namespace bigmodel {
namespace {

struct RowStatistics {
  float mean, rstd;
};

template <DType D>
RowStatistics row_statistics(const char* h, const NormArgs& a) {
  const int64_t n = a.features, whole = n / kWideLanes * kWideLanes;
  float mean = 0.0f;
  if (!a.rms) {
    Wide sums = wide(0.0f);
    for (int64_t c = 0; c < whole; c += kWideLanes) sums = sums + load_wide<D>(h, c);
    float sum = sum_of(sums);
    for (int64_t c = whole; c < n; ++c) sum += load_one<D>(h, c);
    mean = sum / static_cast<float>(n);
  }
  Wide squares = wide(0.0f);
  for (int64_t c = 0; c < whole; c += kWideLanes) {
    const Wide d = load_wide<D>(h, c) - wide(mean);
    squares = fma(d, d, squares);
  }
  float square = sum_of(squares);
  for (int64_t c = whole; c < n; ++c) {
    const float d = load_one<D>(h, c) - mean;
    square += d * d;
  }
  return {mean, 1.0f / __builtin_sqrtf(square / static_cast<float>(n) + a.eps)};
}

// The cache lines of kWideLanes elements.
template <DType D>
BIGMODEL_INLINE void fetch(const char* p) {
  constexpr int kBytes = kWideLanes * (D == DType::f32 ? 4 : 2);
#pragma GCC unroll 4
  for (int line = 0; line < kBytes; line += 64) _mm_prefetch(p + line, _MM_HINT_T1);
}

template <DType D>
void norm_rows(const NormArgs& a, int64_t begin, int64_t end, bool stream) {
  constexpr int64_t kBytes = D == DType::f32 ? 4 : 2;
  const int64_t n = a.features, whole = n / kWideLanes * kWideLanes;
  for (int64_t row = begin; row < end; ++row) {
    const char* h = static_cast<const char*>(a.h) + row * n * kBytes;
    char* y = static_cast<char*>(a.y) + row * n * kBytes;
    const RowStatistics s = row_statistics<D>(h, a);
    if (a.mean) a.mean[row] = s.mean;
    a.rstd[row] = s.rstd;
    const int64_t ahead = (row + rows_in_block(n)) * n * kBytes;
    for (int64_t c = 0; c < whole; c += kWideLanes) {
      if (a.ahead[0]) fetch<D>(static_cast<const char*>(a.ahead[0]) + ahead + c * kBytes);
      if (a.ahead[1]) fetch<D>(static_cast<const char*>(a.ahead[1]) + ahead + c * kBytes);
      Wide v = (load_wide<D>(h, c) - wide(s.mean)) * wide(s.rstd);
      if (a.weight) v = v * load_wide<DType::f32>(a.weight, c);
      if (a.norm_bias) v = v + load_wide<DType::f32>(a.norm_bias, c);
      store_wide<D>(y + c * kBytes, v.v, stream);
    }
    for (int64_t c = whole; c < n; ++c) {
      float v = (load_one<D>(h, c) - s.mean) * s.rstd;
      if (a.weight) v *= a.weight[c];
      if (a.norm_bias) v += a.norm_bias[c];
      store_one<D>(y, c, v);
    }
  }
  if (stream) _mm_sfence();
}

// With n = (h - mean) rstd and g = grad_y weight:  dh = rstd (g - mean(g) - n mean(g n)) + grad_h, and no mean(g) for
// rms.
template <DType D>
void norm_rows_backward(const NormArgs& a, int64_t begin, int64_t end, float* sums) {
  constexpr int64_t kBytes = D == DType::f32 ? 4 : 2;
  const int64_t n = a.features, whole = n / kWideLanes * kWideLanes;
  float *dweight = sums, *dbias = sums + n;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * n * kBytes;
    const char *h = static_cast<const char*>(a.h) + at, *grad_y = static_cast<const char*>(a.grad_y) + at;
    const char* grad_h = a.grad_h ? static_cast<const char*>(a.grad_h) + at : nullptr;
    char* dh = static_cast<char*>(a.dh) + at;
    const float mean = a.rms ? 0.0f : a.mean[row], rstd = a.rstd[row];
    Wide plain = wide(0.0f), crossed = wide(0.0f);
    for (int64_t c = 0; c < whole; c += kWideLanes) {
      const Wide dy = load_wide<D>(grad_y, c), normal = (load_wide<D>(h, c) - wide(mean)) * wide(rstd);
      const Wide g = a.weight ? dy * load_wide<DType::f32>(a.weight, c) : dy;
      plain = plain + g;
      crossed = fma(g, normal, crossed);
      store_wide<DType::f32>(dweight + c, fma(dy, normal, load_wide<DType::f32>(dweight, c)).v, false);
      store_wide<DType::f32>(dbias + c, (dy + load_wide<DType::f32>(dbias, c)).v, false);
    }
    float sum = sum_of(plain), product = sum_of(crossed);
    for (int64_t c = whole; c < n; ++c) {
      const float dy = load_one<D>(grad_y, c), normal = (load_one<D>(h, c) - mean) * rstd;
      const float g = a.weight ? dy * a.weight[c] : dy;
      sum += g;
      product += g * normal;
      dweight[c] += dy * normal;
      dbias[c] += dy;
    }
    const float mean_g = a.rms ? 0.0f : sum / static_cast<float>(n), mean_gn = product / static_cast<float>(n);
    for (int64_t c = 0; c < whole; c += kWideLanes) {
      const Wide normal = (load_wide<D>(h, c) - wide(mean)) * wide(rstd);
      Wide g = load_wide<D>(grad_y, c);
      if (a.weight) g = g * load_wide<DType::f32>(a.weight, c);
      Wide v = fnma(normal, wide(mean_gn), g - wide(mean_g)) * wide(rstd);
      if (grad_h) v = v + load_wide<D>(grad_h, c);
      store_wide<D>(dh + c * kBytes, v.v, false);
    }
    for (int64_t c = whole; c < n; ++c) {
      const float normal = (load_one<D>(h, c) - mean) * rstd;
      float v = load_one<D>(grad_y, c) * (a.weight ? a.weight[c] : 1.0f);
      v = (v - mean_g - normal * mean_gn) * rstd;
      store_one<D>(dh, c, grad_h ? v + load_one<D>(grad_h, c) : v);
    }
  }
}

template <DType D>
void add_rows(const void* rows, int64_t begin, int64_t end, int64_t n, float* sums) {
  constexpr int64_t kBytes = D == DType::f32 ? 4 : 2;
  const char* base = static_cast<const char*>(rows);
  const int64_t whole = n / kWideLanes * kWideLanes;
  for (int64_t c = 0; c < whole; c += kWideLanes) {
    Wide sum = wide(0.0f);  // the block's own sum first: adding row after row to a large total would lose more
    for (int64_t row = begin; row < end; ++row) sum = sum + load_wide<D>(base + row * n * kBytes, c);
    store_wide<DType::f32>(sums + c, (sum + load_wide<DType::f32>(sums, c)).v, false);
  }
  for (int64_t c = whole; c < n; ++c) {
    float sum = 0.0f;
    for (int64_t row = begin; row < end; ++row) sum += load_one<D>(base + row * n * kBytes, c);
    sums[c] += sum;
  }
}

}  // namespace
}  // namespace bigmodel
