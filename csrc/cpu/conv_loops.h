// The parts of the convolutions that a compiler makes good code of for any instruction set. Everything is in an
// anonymous namespace: each file that includes this has its own copy.
#pragma once

#include <cmath>
#include <cstring>

#include "../common/half.h"
#include "conv_image.h"

namespace bigmodel {
namespace {

inline float load_float(const void* x, DType dtype, int64_t i) {
  if (dtype == DType::f32) return static_cast<const float*>(x)[i];
  const uint16_t h = static_cast<const uint16_t*>(x)[i];
  return dtype == DType::bf16 ? bf16_to_float(h) : f16_to_float(h);
}

inline uint8_t quantized(float x, float inverse) {
  return static_cast<uint8_t>(static_cast<int>(std::nearbyintf(x * inverse)) + 128);
}

// Calls copy(from, to) for every segment of every row.
template <typename Copy>
inline void for_each_segment(const ConvRows& r, Copy copy) {
  const int64_t pixels = r.out_height * r.out_width;
  int64_t image = r.first / pixels, x = r.first % r.out_width;
  int64_t y = r.first % pixels / r.out_width;
  uint8_t* to = r.to;
  for (int64_t left = r.count; left > 0;) {
    const uint8_t* from = r.images + image * r.image_bytes + y * r.line_step + x * r.pixel_step;
    const int64_t run = left < r.out_width - x ? left : r.out_width - x;
    for (int64_t i = 0; i < run; ++i, from += r.pixel_step, to += r.stride) {
      uint8_t* segment = to;
      for (int64_t s = 0; s < r.segments; ++s, segment += r.segment_bytes) copy(from + r.offset[s], segment);
    }
    left -= run;
    x = 0;
    if (++y == r.out_height) y = 0, ++image;
  }
}

inline void depthwise(const ConvDepthwise& d) {
  constexpr int64_t kChannels = 64;
  for (int64_t p = 0; p < d.pixels; ++p) {
    const uint8_t* from = d.from + p * d.pixel_step;
    float* out = d.out + p * d.out_stride;
    for (int64_t c = 0; c < d.channels; c += kChannels) {
      const int64_t left = d.channels - c < kChannels ? d.channels - c : kChannels;
      int32_t sum[kChannels] = {};
      for (int64_t t = 0; t < d.taps; ++t) {
        const uint8_t* q = from + d.offset[t] + c;
        const int8_t* w = d.weight + t * d.width + c;
        for (int64_t i = 0; i < left; ++i) sum[i] += (static_cast<int32_t>(q[i]) - 128) * w[i];
      }
      for (int64_t i = 0; i < left; ++i) {
        const float y = static_cast<float>(sum[i]) * d.x_scale * d.weight_scale[c + i];
        out[c + i] = d.bias ? y + d.bias[c + i] : y;
      }
    }
  }
}

}  // namespace
}  // namespace bigmodel
