#include "quantize_rows.h"

#include <algorithm>
#include <limits>

#include "../common/int8_args.h"
#include "../common/parallel.h"
#include "isa.h"

namespace bigmodel {
namespace {
#if defined(__x86_64__)
constexpr Variants<QuantizeRowsKernel> variants = {
    {quantize_rows_scalar, quantize_rows_avx2, quantize_rows_avx512, nullptr}};
constexpr Variants<QuantizeFixedKernel> fixed_variants = {
    {quantize_fixed_scalar, quantize_fixed_avx2, quantize_fixed_avx512, nullptr}};
#else
constexpr Variants<QuantizeRowsKernel> variants = {{quantize_rows_scalar, nullptr, nullptr, nullptr}};
constexpr Variants<QuantizeFixedKernel> fixed_variants = {{quantize_fixed_scalar, nullptr, nullptr, nullptr}};
#endif
const KernelLevel level_of_quantize_rows("quantize_rows", [] { return variants.level(); });
constexpr int64_t kGrainElements = 32768;  // below this, waking a second thread costs more than it saves

}  // namespace

QuantizeRowsKernel quantize_rows_kernel() { return variants.pick(); }

QuantizeFixedKernel quantize_fixed_kernel() { return fixed_variants.pick(); }

FixedScale fixed_scale(float s) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  if (!(s >= 0.0f && s <= std::numeric_limits<float>::max())) return {0.0f, kNan};
  return s < kSmallestQuantizable ? FixedScale{0.0f, 0.0f} : FixedScale{1.0f / s, s};
}

void quantize_rows(const View& x, const View& q, const View& scale) {
  check_quantize_rows(x, q, scale);
  const int64_t m = x.sizes[0], k = x.sizes[1];
  if (k == 0) {  // rows of nothing: q may have no memory
    std::fill(scale.as<float>(), scale.as<float>() + m, 0.0f);
    return;
  }
  const auto kernel = quantize_rows_kernel();
  const int64_t row_bytes = k * element_size(x.dtype);
  parallel_for(m, kGrainElements / k + 1, [&](int64_t begin, int64_t end) {
    kernel(x.as<char>() + begin * row_bytes, x.dtype, end - begin, k, k, q.as<uint8_t>() + begin * k, k, 0,
           scale.as<float>() + begin);
  });
}

}  // namespace bigmodel
