#include "conv_loops.h"

namespace bigmodel {
namespace {

uint32_t largest(const void* x, DType dtype, int64_t count) {
  uint32_t best = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = float_to_bits(load_float(x, dtype, i)) & 0x7fffffffu;
    best = bits > best ? bits : best;
  }
  return best;
}

void quantize(const void* x, DType dtype, int64_t count, float inverse, uint8_t* q) {
  for (int64_t i = 0; i < count; ++i) q[i] = quantized(load_float(x, dtype, i), inverse);
}

void quantize_planes(const void* x, DType dtype, int64_t plane, int64_t channels, int64_t pixels, float inverse,
                     uint8_t* q) {
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t c = 0; c < channels; ++c) *q++ = quantized(load_float(x, dtype, c * plane + p), inverse);
}

void rows(const ConvRows& r) {
  for_each_segment(
      r, [&](const uint8_t* from, uint8_t* to) { std::memcpy(to, from, static_cast<size_t>(r.segment_bytes)); });
}

}  // namespace

const ConvImageKernels conv_image_scalar = {largest, quantize, quantize_planes, rows, depthwise, nullptr};

}  // namespace bigmodel
