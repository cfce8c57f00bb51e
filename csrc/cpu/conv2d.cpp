#include "conv2d.h"

#include "../common/check.h"

namespace bigmodel {
namespace {

constexpr int64_t kLargest = int64_t{1} << 31;  // of every number of a window and size: products of two stay in int64

void check_range(const int64_t* values, int count, int64_t least, const char* name) {
  for (int i = 0; i < count; ++i)
    BIGMODEL_CHECK(values[i] >= least && values[i] < kLargest, name, " must be at least ", least, ", got ", values[i]);
}

void check_dense(const View& v, const char* name, bool channels_last) {
  if (v.numel() == 0) return;
  constexpr int kPlanes[4] = {3, 2, 1, 0}, kPixels[4] = {1, 3, 2, 0};
  int64_t expected = 1;
  for (const int d : channels_last ? kPixels : kPlanes) {
    BIGMODEL_CHECK(v.sizes[d] == 1 || v.strides[d] == expected, name, " must be contiguous",
                   channels_last ? " (channels last)" : "", ", got shape ", shape_string(v));
    expected *= v.sizes[d];
  }
}

int64_t out_size(int64_t padded, int64_t kernel, int64_t stride, int64_t dilation) {
  return (padded - dilation * (kernel - 1) - 1) / stride + 1;
}

}  // namespace

Conv2d check_conv2d(const View& x, const View& out, const ConvWindow& window, bool channels_last) {
  check_float(x, "x");
  check_ndim(x, "x", 4);
  check_ndim(out, "out", 4);
  check_dtype(out, "out", x.dtype);
  check_range(window.kernel, 2, 1, "kernel_size");
  check_range(window.stride, 2, 1, "stride");
  check_range(window.padding, 4, 0, "padding");
  check_range(window.dilation, 2, 1, "dilation");
  check_range(&window.groups, 1, 1, "groups");
  Conv2d c = {};
  static_cast<ConvWindow&>(c) = window;
  c.channels_last = channels_last;
  c.batch = x.sizes[0], c.channels = x.sizes[1], c.height = x.sizes[2], c.width = x.sizes[3];
  c.outputs = out.sizes[1];
  BIGMODEL_CHECK(c.channels > 0 && c.channels % c.groups == 0, "x must have a multiple of groups=", c.groups,
                 " channels, got shape ", shape_string(x));
  BIGMODEL_CHECK(c.outputs > 0 && c.outputs % c.groups == 0,
                 "the number of outputs must be a multiple of groups=", c.groups, ", got ", c.outputs);
  c.group_channels = c.channels / c.groups, c.group_outputs = c.outputs / c.groups;
  c.padded_height = c.height + c.padding[0] + c.padding[1], c.padded_width = c.width + c.padding[2] + c.padding[3];
  BIGMODEL_CHECK(c.height > 0 && c.width > 0, "x must have pixels, got shape ", shape_string(x));
  BIGMODEL_CHECK(
      c.padded_height > c.dilation[0] * (c.kernel[0] - 1) && c.padded_width > c.dilation[1] * (c.kernel[1] - 1),
      "x must be at least as large as the kernel, got padded ", c.padded_height, "x", c.padded_width,
      " for kernel_size ", c.kernel[0], "x", c.kernel[1], " with dilation ", c.dilation[0], "x", c.dilation[1]);
  c.out_height = out_size(c.padded_height, c.kernel[0], c.stride[0], c.dilation[0]);
  c.out_width = out_size(c.padded_width, c.kernel[1], c.stride[1], c.dilation[1]);
  check_shape(out, "out", {c.batch, c.outputs, c.out_height, c.out_width});
  int64_t pixels, bytes;
  BIGMODEL_CHECK(!__builtin_mul_overflow(c.padded_height, c.padded_width, &pixels) &&
                     !__builtin_mul_overflow(pixels, 4 * c.channels, &bytes) &&
                     !__builtin_mul_overflow(c.kernel[0] * c.kernel[1], c.group_channels, &c.k),
                 "x is too large with its padding, got shape ", shape_string(x));
  check_dense(x, "x", channels_last);
  check_dense(out, "out", channels_last);
  return c;
}

}  // namespace bigmodel
