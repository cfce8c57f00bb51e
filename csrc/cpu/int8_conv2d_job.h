// int8_conv2d at work, for the files of that stem: int8_conv2d.cpp (checks, order of the steps),
// int8_conv2d_quantize.cpp (images to bytes), int8_conv2d_panels.cpp (the matrix product) and
// int8_conv2d_depthwise.cpp.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "../common/parallel.h"
#include "../common/round.h"
#include "conv2d.h"
#include "conv_image.h"
#include "int8_panel.h"
#include "tiles.h"

namespace bigmodel {

constexpr int64_t kImagesBytes = 512 << 10;  // small images are done so many at a time
constexpr int64_t kGrainWork = 1 << 20;      // multiply-adds below which a second thread does not pay
constexpr int64_t kGrainElements = 32768;    // the same for quantizing
enum Slot { kImagesSlot, kItemSlot };

// A group of images at work: quantized, with padding, [groups][images][padded_height][padded_width][group_channels].
class Int8Conv2d {
 public:
  Int8Conv2d(const Conv2d& conv, const View& x, const View& weight, const View& out)
      : c_(conv), x_(x.as<char>()), out_(out.as<char>()), weight_(weight.as<int8_t>()), dtype_(x.dtype) {
    packed_ = weight.ndim == 5;
    depthwise_ = !packed_ && c_.group_channels == 1 && c_.group_outputs == 1;
    panels_ = ceil_div(c_.group_outputs, kPanelColumns);
    image_bytes_ = c_.padded_height * c_.padded_width * c_.group_channels;
    images_ = std::max<int64_t>(1, std::min(c_.batch, kImagesBytes * num_threads() / (c_.padded_bytes() + 1)));
    set_segments();
  }

  void set_columns(const View& weight_scale, const std::optional<View>& bias);
  void run();

 private:
  struct Item;

  void set_segments();
  void set_depthwise();
  void find_scales(int64_t first);
  void quantize_lines(int64_t first, int64_t begin, int64_t end);
  void fill_padding(uint8_t* image, int64_t y) const;
  void multiply(int64_t first);
  bool run_item(const Item& item) const;
  void run_panel(const Item& item, Int8Panel p, int8_t* packed) const;
  void pack_panel(int64_t n0, int64_t columns, int8_t* panel) const;
  void store_planes(const Item& item, int64_t n0, int64_t columns, const float* sums) const;
  void run_depthwise(int64_t first);
  bool depthwise_line(int64_t first, int64_t line) const;

  int64_t element() const { return element_size(dtype_); }
  int64_t rows() const { return now_ * c_.out_pixels(); }
  uint8_t* image(int64_t group, int64_t i) const { return q_ + (group * now_ + i) * image_bytes_; }

  Conv2d c_;
  const char* x_;
  char* out_;
  const int8_t* weight_;
  DType dtype_;
  bool packed_, depthwise_;
  int64_t panels_, image_bytes_, images_;
  int64_t now_ = 0;  // images in this group
  uint8_t* q_ = nullptr;
  std::vector<int64_t> offsets_;  // of the window's segments
  int64_t segment_bytes_ = 0;
  std::vector<float> weight_scale_, bias_;  // [groups][panels * 64], zero past a group's outputs
  ConvDepthwiseKernel packed_kernel_ = conv_depthwise_packed();
  int64_t joined_ = 1;        // depthwise: output pixels done as one
  std::vector<int8_t> taps_;  // depthwise: weights as ConvDepthwise has them
  std::vector<int32_t> compensation_;
  std::vector<float> scale_, inverse_;  // by image
};

}  // namespace bigmodel
