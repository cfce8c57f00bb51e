// What the convolutions share: their window, the output's size, and the checks of both.
//
//   y[b, n, oy, ox] = sum over c, i, j of x[b, g(n) * Cg + c, oy * sh + i * dh - top, ox * sw + j * dw - left] * W[n,
//   c, i, j]
//
// with x 0 outside of the image, Cg = C / groups and g(n) = n / (N / groups). As a matrix product, M counts output
// pixels, N output channels and K = kh * kw * Cg.
#pragma once

#include <cstdint>

#include "../common/view.h"

namespace bigmodel {

struct ConvWindow {
  int64_t kernel[2], stride[2];
  int64_t padding[4];  // top, bottom, left, right
  int64_t dilation[2], groups;
};

struct Conv2d : ConvWindow {
  bool channels_last;  // x and out are [B, H, W, C] in memory, else [B, C, H, W]
  int64_t batch, channels, height, width, outputs, out_height, out_width;
  int64_t group_channels, group_outputs;
  int64_t padded_height, padded_width;
  int64_t k;  // kh * kw * group_channels

  int64_t out_pixels() const { return out_height * out_width; }
  int64_t padded_bytes() const { return padded_height * padded_width * channels; }  // one image, a byte each
  // One group's inputs are its image itself: output pixel p reads input pixel p.
  bool pointwise() const {
    return kernel[0] == 1 && kernel[1] == 1 && stride[0] == 1 && stride[1] == 1 && padded_height == height &&
           padded_width == width;
  }
};

// x [B,C,H,W] and out [B,N,OH,OW] of one float dtype, both contiguous in the stated order.
Conv2d check_conv2d(const View& x, const View& out, const ConvWindow& window, bool channels_last);

}  // namespace bigmodel
