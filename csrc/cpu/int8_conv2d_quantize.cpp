#include <cstring>
#include <limits>

#include "../common/half.h"
#include "int8_conv2d_job.h"
#include "quantize_rows.h"

namespace bigmodel {

void Int8Conv2d::find_scales(int64_t first) {
  const int64_t count = c_.channels * c_.height * c_.width;
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(num_threads(), count / kGrainElements));
  const int64_t step = round_up(ceil_div(count, parts), 64);
  std::vector<uint32_t> best(now_ * parts);
  parallel_for(now_ * parts, ceil_div(kGrainElements, step), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t from = std::min(i % parts * step, count), to = std::min(from + step, count);
      const char* x = x_ + ((first + i / parts) * count + from) * element();
      best[i] = conv_image_kernels().largest(x, dtype_, to - from);
    }
  });
  scale_.resize(now_), inverse_.resize(now_);
  for (int64_t i = 0; i < now_; ++i) {
    const uint32_t bits = *std::max_element(best.begin() + i * parts, best.begin() + (i + 1) * parts);
    const float absmax = bits_to_float(bits);
    const bool finite = bits < 0x7f800000u, usable = finite && absmax >= kSmallestQuantizable;
    scale_[i] = usable ? absmax / 127.0f : finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
    inverse_[i] = usable ? 127.0f / absmax : 0.0f;
  }
}

// What surrounds line y of an image of one group.
void Int8Conv2d::fill_padding(uint8_t* image, int64_t y) const {
  const int64_t line = c_.padded_width * c_.group_channels;
  const auto fill = [](uint8_t* from, int64_t bytes) { std::memset(from, 128, static_cast<size_t>(bytes)); };
  uint8_t* at = image + (c_.padding[0] + y) * line;
  if (y == 0) fill(image, c_.padding[0] * line);
  if (y == c_.height - 1) fill(at + line, c_.padding[1] * line);
  fill(at, c_.padding[2] * c_.group_channels);
  fill(at + (c_.padding[2] + c_.width) * c_.group_channels, c_.padding[3] * c_.group_channels);
}

// Lines [begin, end) of the images, counted over all of them.
void Int8Conv2d::quantize_lines(int64_t first, int64_t begin, int64_t end) {
  const ConvImageKernels& kernels = conv_image_kernels();
  const int64_t line = c_.padded_width * c_.group_channels, plane = c_.height * c_.width, cg = c_.group_channels;
  const bool joined = c_.padded_width == c_.width;  // lines follow each other without padding
  for (int64_t i = begin; i < end;) {
    const int64_t im = i / c_.height, y = i % c_.height;
    const int64_t lines = joined ? std::min(c_.height - y, end - i) : 1, pixels = lines * c_.width;
    const char* x = x_ + (first + im) * c_.channels * plane * element();
    for (int64_t g = 0; g < c_.groups; ++g) {
      uint8_t* to = image(g, im);
      for (int64_t l = 0; l < lines; ++l) fill_padding(to, y + l);
      to += (c_.padding[0] + y) * line + c_.padding[2] * cg;
      const int64_t pixel = y * c_.width;
      if (inverse_[im] == 0.0f) {
        std::memset(to, 128, static_cast<size_t>(pixels * cg));
      } else if (!c_.channels_last) {
        kernels.quantize_planes(x + (g * cg * plane + pixel) * element(), dtype_, plane, cg, pixels, inverse_[im], to);
      } else if (c_.groups == 1) {
        kernels.quantize(x + pixel * cg * element(), dtype_, pixels * cg, inverse_[im], to);
      } else {
        for (int64_t p = 0; p < pixels; ++p)
          kernels.quantize(x + ((pixel + p) * c_.channels + g * cg) * element(), dtype_, cg, inverse_[im], to + p * cg);
      }
    }
    i += lines;
  }
}

}  // namespace bigmodel
