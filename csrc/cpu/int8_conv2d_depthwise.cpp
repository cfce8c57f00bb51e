#include <atomic>
#include <new>

#include "../common/scratch.h"
#include "int8_conv2d_job.h"

namespace bigmodel {
namespace {

// Where conv_depthwise_avx512vnni reads the weight of tap t of channel n: in the order that interleaving gives.
int64_t packed_tap(int64_t t, int64_t n, int64_t channels) {
  const int64_t block = n / 64, quarter = n % 64 / 16, j = n % 16 / 4;
  return (t / 4 * (channels / 64) + block) * 256 + j * 64 + quarter * 16 + n % 4 * 4 + t % 4;
}

}  // namespace

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
  const ConvDepthwiseKernel kernel = packed_kernel_ ? packed_kernel_ : conv_image_kernels().depthwise;
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

}  // namespace bigmodel
