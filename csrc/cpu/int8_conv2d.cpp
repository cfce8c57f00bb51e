#include "int8_conv2d.h"

#include <new>

#include "../common/check.h"
#include "../common/half.h"
#include "../common/scratch.h"
#include "int8_conv2d_job.h"
#include "int8_gemm.h"
#include "isa.h"

namespace bigmodel {
namespace {

const KernelLevel level_of_int8_conv2d("int8_conv2d", [] { return kernel_isa("int8_linear"); });

}  // namespace

void Int8Conv2d::set_segments() {
  const int64_t line = c_.padded_width * c_.group_channels;
  const bool whole_lines = c_.dilation[1] == 1;  // a line of the window is one run of bytes
  segment_bytes_ = (whole_lines ? c_.kernel[1] : 1) * c_.group_channels;
  for (int64_t i = 0; i < c_.kernel[0]; ++i)
    for (int64_t j = 0; j < (whole_lines ? 1 : c_.kernel[1]); ++j)
      offsets_.push_back(i * c_.dilation[0] * line + j * c_.dilation[1] * c_.group_channels);
}

void Int8Conv2d::set_columns(const View& weight_scale, const std::optional<View>& bias) {
  const int64_t width = depthwise_ ? 1 : panels_ * kPanelColumns;
  const auto spread = [&](auto value) {
    std::vector<float> all(c_.groups * width);
    for (int64_t n = 0; n < c_.outputs; ++n) all[n / c_.group_outputs * width + n % c_.group_outputs] = value(n);
    return all;
  };
  weight_scale_ = spread([&](int64_t n) { return weight_scale.as<float>()[n]; });
  if (bias) {
    bias_ = spread([&](int64_t n) {
      if (bias->dtype == DType::f32) return bias->as<float>()[n];
      if (bias->dtype == DType::f64) return static_cast<float>(bias->as<double>()[n]);
      const uint16_t h = bias->as<uint16_t>()[n];
      return bias->dtype == DType::bf16 ? bf16_to_float(h) : f16_to_float(h);
    });
  }
  if (depthwise_) set_depthwise();
}

void Int8Conv2d::run() {
  for (int64_t first = 0; first < c_.batch; first += images_) {
    now_ = std::min(images_, c_.batch - first);
    q_ = static_cast<uint8_t*>(scratch(kImagesSlot, static_cast<size_t>(now_ * c_.padded_bytes() + kConvSlack)));
    if (!q_) throw std::bad_alloc();
    find_scales(first);
    parallel_for(now_ * c_.height, ceil_div(kGrainElements, c_.width * c_.channels + 1),
                 [&](int64_t begin, int64_t end) { quantize_lines(first, begin, end); });
    depthwise_ ? run_depthwise(first) : multiply(first);
  }
}

namespace {

void check_weight(const View& weight, const Conv2d& c) {
  check_dtype(weight, "weight", DType::i8);
  if (weight.ndim == 5) {
    check_shape(weight, "packed weight", {c.groups, (c.group_outputs + 63) / 64, (c.k + 3) / 4 + 1, 64, 4});
  } else {
    check_shape(weight, "weight", {c.outputs, c.k});
  }
  check_contiguous(weight, "weight");
}

}  // namespace

void int8_conv2d(const View& x, const View& weight, const View& weight_scale, const std::optional<View>& bias,
                 const View& out, const ConvWindow& window, bool channels_last) {
  const Conv2d c = check_conv2d(x, out, window, channels_last);
  check_dtype(weight_scale, "weight_scale", DType::f32);
  check_shape(weight_scale, "weight_scale", {c.outputs});
  check_contiguous(weight_scale, "weight_scale");
  if (bias) {
    if (!is_float(bias->dtype) && bias->dtype != DType::f64)
      throw TypeError(message("bias must be float32, bfloat16, float16 or float64, got ", dtype_name(bias->dtype)));
    check_shape(*bias, "bias", {c.outputs});
    check_contiguous(*bias, "bias");
  }
  BIGMODEL_CHECK(c.k <= kInt8MaxK, "K = channels / groups * kernel height * width must be at most ", kInt8MaxK,
                 " for an exact int32 sum, got ", c.k);
  check_weight(weight, c);
  if (out.numel() == 0) return;
  Int8Conv2d op(c, x, weight, out);
  op.set_columns(weight_scale, bias);
  op.run();
}

}  // namespace bigmodel
