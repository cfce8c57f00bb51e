// What the int8 convolution does to images besides the matrix product, one thread's share of each.
//
// An image is quantized as a whole, q = round_half_even(x * inverse), and kept as bytes q + 128 (the unsigned operand
// of the product) with its padding around it (128, which is 0) and its channels last: the inputs of one row of the
// kernel window then lie side by side.
#pragma once

#include <cstdint>

#include "../common/view.h"

namespace bigmodel {

constexpr int64_t kConvSlack = 64;  // bytes readable after the images, and writable after the rows, of ConvRows

// Rows of the product's left operand: row p is the inputs of output pixel first + p, `segments` runs of bytes.
struct ConvRows {
  const uint8_t* images;  // [images][padded_height][padded_width][channels]
  int64_t image_bytes;    // between images
  int64_t line_step;      // between output lines, in bytes of input
  int64_t pixel_step;     // between output pixels of a line
  int64_t out_height, out_width;
  const int64_t* offset;  // [segments] from the window's first byte
  int64_t segments, segment_bytes;
  int64_t first, count;  // output pixels, counted over the images
  uint8_t* to;           // [count], `stride` bytes between; bytes after the last segment are undefined
  int64_t stride;
};

// One output line of a convolution with as many groups as channels and outputs.
struct ConvDepthwise {
  const uint8_t* from;    // the first output pixel's first input pixel; 64 bytes past the last are readable
  int64_t pixel_step;     // bytes of input between output pixels
  const int64_t* offset;  // [taps rounded up to 4], the last ones any valid ones
  int64_t taps;
  int64_t pixels, channels;
  int64_t width;                // channels that the weights are laid out for
  const int8_t* weight;         // [taps][width]; packed: [taps / 4][width / 64][4][16][4], see packed_tap
  const int32_t* compensation;  // [channels rounded up to 64] of 128 * sum of a channel's weights
  const float* weight_scale;    // [channels]
  const float* bias;            // [channels], or null
  float x_scale;
  float* out;  // [pixels][channels], out_stride between pixels
  int64_t out_stride;
};

using ConvDepthwiseKernel = void (*)(const ConvDepthwise&);

void conv_depthwise_avx512vnni(const ConvDepthwise&);  // the only one whose weights are packed

struct ConvImageKernels {
  // The largest |x| as a bit pattern, which orders as an integer: infinity and then NaN on top.
  uint32_t (*largest)(const void* x, DType dtype, int64_t count);
  // q[i] of x[i].
  void (*quantize)(const void* x, DType dtype, int64_t count, float inverse, uint8_t* q);
  // q[p * channels + c] of x[c * plane + p].
  void (*quantize_planes)(const void* x, DType dtype, int64_t plane, int64_t channels, int64_t pixels, float inverse,
                          uint8_t* q);
  void (*rows)(const ConvRows&);
  ConvDepthwiseKernel depthwise;
  // sums [pixels][64] of `columns` planes -> out[n * plane + p], rounded once to dtype. Null: the tiles' is as good.
  void (*store_planes)(const float* sums, int64_t pixels, int64_t columns, void* out, DType dtype, int64_t plane);
};

extern const ConvImageKernels conv_image_scalar, conv_image_avx2, conv_image_avx512;

// The active instruction set's; the second is null where the first's depthwise is the best.
const ConvImageKernels& conv_image_kernels();
ConvDepthwiseKernel conv_depthwise_packed();

}  // namespace bigmodel
