#include "int8_conv2d.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <vector>

#include "../common/check.h"
#include "../common/half.h"
#include "../common/parallel.h"
#include "../common/scratch.h"
#include "conv_image.h"
#include "int8_gemm.h"
#include "int8_panel.h"
#include "isa.h"
#include "quantize_rows.h"
#include "tiles.h"

namespace bigmodel {
namespace {

#if defined(__x86_64__)
constexpr Variants<const ConvImageKernels*> variants = {
    {&conv_image_scalar, &conv_image_avx2, &conv_image_avx512, nullptr}};
constexpr Variants<ConvDepthwiseKernel> packed_depthwise = {{nullptr, nullptr, nullptr, conv_depthwise_avx512vnni}};
#else
constexpr Variants<const ConvImageKernels*> variants = {{&conv_image_scalar, nullptr, nullptr, nullptr}};
constexpr Variants<ConvDepthwiseKernel> packed_depthwise = {{nullptr, nullptr, nullptr, nullptr}};
#endif
const KernelLevel level_of_int8_conv2d("int8_conv2d", [] { return kernel_isa("int8_linear"); });

constexpr int64_t kRowTile = 6;           // rows of every wide kernel's register tile
constexpr int64_t kRowBytes = 128 << 10;  // rows of the product that stay in L2 beside a panel and their sums
constexpr int64_t kMaxRows = 512;
constexpr int64_t kImagesBytes = 512 << 10;  // small images are done so many at a time
constexpr int64_t kGrainWork = 1 << 20;      // multiply-adds below which a second thread does not pay
constexpr int64_t kGrainElements = 32768;    // the same for quantizing
enum Slot { kImagesSlot, kItemSlot };

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Where conv_depthwise_avx512vnni reads the weight of tap t of channel n: in the order that interleaving gives.
int64_t packed_tap(int64_t t, int64_t n, int64_t channels) {
  const int64_t block = n / 64, quarter = n % 64 / 16, j = n % 16 / 4;
  return (t / 4 * (channels / 64) + block) * 256 + j * 64 + quarter * 16 + n % 4 * 4 + t % 4;
}

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
  ConvDepthwiseKernel packed_kernel_ = packed_depthwise.pick();
  int64_t joined_ = 1;        // depthwise: output pixels done as one
  std::vector<int8_t> taps_;  // depthwise: weights as ConvDepthwise has them
  std::vector<int32_t> compensation_;
  std::vector<float> scale_, inverse_;  // by image
};

// Rows [row, row + rows) of the product (output pixels over the images) of one group by its panels [panel, panel_end).
struct Int8Conv2d::Item {
  int64_t first, group, row, rows, panel, panel_end;
};

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

// All channels become one group, whose bytes lie side by side. Where vectors are wider than a pixel, several
// neighbouring output pixels are taken for one with as many channels.
void Int8Conv2d::set_depthwise() {
  const int64_t c = c_.channels, taps = c_.k;
  c_.groups = 1, c_.group_channels = c_.group_outputs = c;
  image_bytes_ = c_.padded_bytes();
  offsets_.clear();
  for (int64_t i = 0; i < c_.kernel[0]; ++i)
    for (int64_t j = 0; j < c_.kernel[1]; ++j)
      offsets_.push_back((i * c_.dilation[0] * c_.padded_width + j * c_.dilation[1]) * c);
  offsets_.resize(round_up(taps, 4), 0);
  joined_ = c_.stride[1] == 1 ? std::clamp<int64_t>(kPanelColumns / c, 1, c_.out_width) : 1;
  const int64_t wide = joined_ * c;
  compensation_.resize(round_up(wide, 64));
  taps_.resize(packed_kernel_ ? round_up(taps, 4) * round_up(wide, 64) : taps * wide);
  for (int64_t n = 0; n < wide; ++n) {
    for (int64_t t = 0; t < taps; ++t) {
      const int8_t w = weight_[n % c * taps + t];
      compensation_[n] += 128 * w;
      taps_[packed_kernel_ ? packed_tap(t, n, round_up(wide, 64)) : t * wide + n] = w;
    }
    if (n < c) continue;
    weight_scale_.push_back(weight_scale_[n - c]);
    if (!bias_.empty()) bias_.push_back(bias_[n - c]);
  }
}

void Int8Conv2d::find_scales(int64_t first) {
  const int64_t count = c_.channels * c_.height * c_.width;
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(num_threads(), count / kGrainElements));
  const int64_t step = round_up(ceil_div(count, parts), 64);
  std::vector<uint32_t> best(now_ * parts);
  parallel_for(now_ * parts, ceil_div(kGrainElements, step), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t from = std::min(i % parts * step, count), to = std::min(from + step, count);
      const char* x = x_ + ((first + i / parts) * count + from) * element();
      best[i] = variants.pick()->largest(x, dtype_, to - from);
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
  const ConvImageKernels& kernels = *variants.pick();
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

// One group's outputs [n0, n0 + columns) as a panel in the packed layout.
void Int8Conv2d::pack_panel(int64_t n0, int64_t columns, int8_t* panel) const {
  std::memset(panel, 0, static_cast<size_t>(packed_panel_bytes(c_.k)));
  for (int64_t n = 0; n < columns; ++n) {
    const int8_t* from = weight_ + (n0 + n) * c_.k;
    int32_t sum = 0;
    for (int64_t k = 0; k < c_.k; ++k) {
      sum += from[k];
      panel[256 + k / 4 * 256 + n * 4 + k % 4] = from[k];
    }
    sum *= 128;
    std::memcpy(panel + n * 4, &sum, 4);
  }
}

// p comes with what concerns the rows filled in, and the place of the output.
void Int8Conv2d::run_panel(const Item& item, Int8Panel p, int8_t* packed) const {
  const Int8PanelKernel kernel = int8_panel_kernel();
  const int64_t groups = ceil_div(c_.k, 4), column = (item.group * panels_ + item.panel) * kPanelColumns;
  p.weight_scale = weight_scale_.data() + column;
  p.bias = bias_.empty() ? nullptr : bias_.data() + column;
  const int8_t* weights = packed;
  if (packed_) {
    weights = weight_ + (item.group * panels_ + item.panel) * packed_panel_bytes(c_.k);
  } else {
    pack_panel(item.group * c_.group_outputs + item.panel * kPanelColumns, p.columns, packed);
  }
  int32_t compensation[kPanelColumns];
  std::memcpy(compensation, weights, sizeof compensation);
  const uint8_t* a = p.a;
  int64_t g0 = 0;
  do {
    p.groups = std::min(kPanelMaxGroups, groups - g0);
    p.a = a + g0 * 4;
    p.b = weights + 256 + g0 * 256;
    p.next = p.b + p.groups * 256;
    p.first = g0 == 0;
    p.last = g0 + p.groups == groups;
    p.compensation = p.first ? compensation : nullptr;
    kernel(p);
    g0 += p.groups;
  } while (g0 < groups);
}

// sums [rows][64], one panel's, transposed into the planes of out.
void Int8Conv2d::store_planes(const Item& item, int64_t n0, int64_t columns, const float* sums) const {
  const ConvImageKernels& kernels = *variants.pick();
  const int64_t plane = c_.out_pixels();
  for (int64_t row = item.row, end = item.row + item.rows; row < end;) {
    const int64_t im = row / plane, pixel = row % plane, pixels = std::min(plane - pixel, end - row);
    char* to = out_ + (((item.first + im) * c_.outputs + n0) * plane + pixel) * element();
    const float* from = sums + (row - item.row) * kPanelColumns;
    if (kernels.store_planes) {
      kernels.store_planes(from, pixels, columns, to, dtype_, plane);
    } else {
      tile_kernels().unpack(from, columns, pixels, kPanelColumns, nullptr, to, dtype_, plane);
    }
    row += pixels;
  }
}

// False if there is no memory.
bool Int8Conv2d::run_item(const Item& whole) const {
  Item item = whole;
  const bool direct = c_.pointwise();
  const int64_t stride = round_up(c_.k, 64) + (round_up(c_.k, 64) % 2048 == 0 ? 64 : 0);
  const int64_t scale_bytes = round_up(item.rows * 4, 64);
  const int64_t row_bytes = direct ? 0 : round_up(item.rows * stride + kConvSlack, 64);
  const int64_t sum_bytes = c_.channels_last ? 0 : item.rows * kPanelColumns * 4;
  const int64_t partial_bytes = ceil_div(c_.k, 4) > kPanelMaxGroups ? item.rows * kPanelColumns * 4 : 0;
  const int64_t packed_bytes = packed_ ? 0 : packed_panel_bytes(c_.k);
  char* memory = static_cast<char*>(
      scratch(kItemSlot, static_cast<size_t>(scale_bytes + row_bytes + sum_bytes + partial_bytes + packed_bytes)));
  if (!memory) return false;
  float* scale = reinterpret_cast<float*>(memory);
  uint8_t* made = reinterpret_cast<uint8_t*>(memory + scale_bytes);
  float* sums = reinterpret_cast<float*>(memory + scale_bytes + row_bytes);
  for (int64_t r = 0; r < item.rows; ++r) scale[r] = scale_[(item.row + r) / c_.out_pixels()];
  Int8Panel p = {};
  p.a = direct ? image(item.group, 0) + item.row * c_.k : made;
  p.a_stride = direct ? c_.k : stride;
  p.rows = item.rows;
  p.x_scale = scale;
  p.partial = reinterpret_cast<int32_t*>(memory + scale_bytes + row_bytes + sum_bytes);
  if (!direct) {
    const int64_t line = c_.padded_width * c_.group_channels;
    variants.pick()->rows({image(item.group, 0), image_bytes_, c_.stride[0] * line, c_.stride[1] * c_.group_channels,
                           c_.out_height, c_.out_width, offsets_.data(), static_cast<int64_t>(offsets_.size()),
                           segment_bytes_, item.row, item.rows, made, stride});
  }
  int8_t* packed = reinterpret_cast<int8_t*>(memory + scale_bytes + row_bytes + sum_bytes + partial_bytes);
  for (; item.panel < item.panel_end; ++item.panel) {
    const int64_t n0 = item.group * c_.group_outputs + item.panel * kPanelColumns;
    p.columns = std::min(kPanelColumns, c_.group_outputs - item.panel * kPanelColumns);
    if (c_.channels_last) {
      const int64_t row = item.first * c_.out_pixels() + item.row;
      p.out = out_ + (row * c_.outputs + n0) * element(), p.out_dtype = dtype_, p.out_stride = c_.outputs;
    } else {
      p.out = sums, p.out_dtype = DType::f32, p.out_stride = kPanelColumns;
    }
    run_panel(item, p, packed);
    if (!c_.channels_last) store_planes(item, n0, p.columns, sums);
  }
  return true;
}

void Int8Conv2d::multiply(int64_t first) {
  const int64_t threads = num_threads();
  int64_t block = std::min(kMaxRows, kRowBytes / round_up(c_.k, 64)) / kRowTile * kRowTile;
  block = std::max(block, kRowTile);
  int64_t parts = 1;  // of the panels: each part makes the rows again
  if (threads > 1) {  // enough items for an even share
    const int64_t wanted = ceil_div(4 * threads, c_.groups);
    block = std::min(block, std::max(4 * kRowTile, round_up(ceil_div(rows(), wanted), kRowTile)));
    parts = std::min(panels_, ceil_div(2 * threads, c_.groups * ceil_div(rows(), block)));
  }
  const int64_t blocks = ceil_div(rows(), block), panels = ceil_div(panels_, parts);
  std::atomic<bool> ok{true};  // nothing may be thrown through the thread pool
  const int64_t work = std::min(block, rows()) * panels * kPanelColumns * (c_.k + 16);
  parallel_for(c_.groups * blocks * parts, ceil_div(kGrainWork, work), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end && ok; ++i) {
      const int64_t part = i % parts, b = i / parts % blocks, row = b * block;
      const int64_t panel = part * panels, panel_end = std::min(panel + panels, panels_);
      if (!run_item({first, i / parts / blocks, row, std::min(block, rows() - row), panel, panel_end})) ok = false;
    }
  });
  if (!ok) throw std::bad_alloc();
}

// One output line of one image.
bool Int8Conv2d::depthwise_line(int64_t first, int64_t line) const {
  const int64_t im = line / c_.out_height, y = line % c_.out_height, plane = c_.out_pixels();
  const int64_t pixel = ((first + im) * plane + y * c_.out_width), count = c_.out_width * c_.channels;
  const bool in_place = c_.channels_last && dtype_ == DType::f32;
  float* sums = in_place ? reinterpret_cast<float*>(out_) + pixel * c_.channels
                         : static_cast<float*>(scratch(kItemSlot, static_cast<size_t>((count + kTileLanes) * 4)));
  if (!sums) return false;
  ConvDepthwise d = {};
  d.from = image(0, im) + y * c_.stride[0] * c_.padded_width * c_.channels;
  d.pixel_step = joined_ * c_.stride[1] * c_.channels;
  d.offset = offsets_.data(), d.taps = c_.k;
  d.pixels = c_.out_width / joined_, d.channels = d.width = joined_ * c_.channels;
  d.weight = taps_.data(), d.compensation = compensation_.data();
  d.weight_scale = weight_scale_.data(), d.bias = bias_.empty() ? nullptr : bias_.data();
  d.x_scale = scale_[im];
  d.out = sums, d.out_stride = d.channels;
  const ConvDepthwiseKernel kernel = packed_kernel_ ? packed_kernel_ : variants.pick()->depthwise;
  kernel(d);
  const int64_t done = d.pixels * joined_;
  if (done < c_.out_width) {  // the pixels that are left, as one again, of which only the first channels exist
    d.from += d.pixels * d.pixel_step, d.out += done * c_.channels;
    d.pixels = 1, d.channels = (c_.out_width - done) * c_.channels;
    kernel(d);
  }
  if (!c_.channels_last) {
    char* to = out_ + ((first + im) * c_.channels * plane + y * c_.out_width) * element();
    tile_kernels().unpack(sums, c_.channels, c_.out_width, c_.channels, nullptr, to, dtype_, plane);
  } else if (!in_place) {
    tile_kernels().unpack(sums, 1, count, 1, nullptr, out_ + pixel * c_.channels * element(), dtype_, count);
  }
  return true;
}

void Int8Conv2d::run_depthwise(int64_t first) {
  std::atomic<bool> ok{true};
  const int64_t work = c_.out_width * c_.channels * c_.k * 8;  // about as dear as so many of the panels' products
  parallel_for(now_ * c_.out_height, ceil_div(kGrainWork, work), [&](int64_t begin, int64_t end) {
    for (int64_t line = begin; line < end; ++line)
      if (!depthwise_line(first, line)) ok = false;
  });
  if (!ok) throw std::bad_alloc();
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
