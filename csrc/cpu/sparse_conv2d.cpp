#include "sparse_conv2d.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "../common/check.h"
#include "../common/round.h"
#include "../common/scratch.h"
#include "conv_tile.h"
#include "isa.h"
#include "panel_csr.h"
#include "sparse_linear.h"

namespace bigmodel {
namespace {

#if defined(__x86_64__)
constexpr Variants<const ConvTileKernels*> variants = {
    {&conv_tile_scalar, &conv_tile_avx2, &conv_tile_avx512, nullptr}};
constexpr Variants<const SparseKernels*> products = {
    {&sparse_kernels_scalar, &sparse_kernels_avx2, &sparse_kernels_avx512, nullptr}};
#else
constexpr Variants<const ConvTileKernels*> variants = {{&conv_tile_scalar, nullptr, nullptr, nullptr}};
constexpr Variants<const SparseKernels*> products = {{&sparse_kernels_scalar, nullptr, nullptr, nullptr}};
#endif
const KernelLevel level_of_sparse_conv2d("sparse_conv2d", [] { return products.level(); });

constexpr int64_t kGrainElements = 32768;
enum Slot { kTileSlot, kSumSlot, kPlanesSlot };

float* floats(Slot slot, int64_t count) { return static_cast<float*>(scratch(slot, static_cast<size_t>(count) * 4)); }

// x with its padding as float32 [B,C,padded height,padded width]; x itself where it is that already.
class Planes {
 public:
  Planes(const Conv2d& conv, const View& x) : c_(conv), x_(x.as<char>()), dtype_(x.dtype) {
    const bool padded = c_.padded_height != c_.height || c_.padded_width != c_.width;
    if (!padded && !c_.channels_last && dtype_ == DType::f32) {
      data = x.as<float>();
      return;
    }
    float* memory = floats(kPlanesSlot, c_.batch * c_.channels * plane());
    if (!memory) throw std::bad_alloc();
    data = memory;
    const int64_t blocks = ceil_div(c_.channels, kBlock);
    parallel_for(c_.batch * blocks, kGrainElements / (kBlock * plane()) + 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) fill(i / blocks, i % blocks * kBlock, memory);
    });
  }

  int64_t plane() const { return c_.padded_height * c_.padded_width; }

  const float* data;

 private:
  static constexpr int64_t kBlock = kTileLanes;  // channels done together

  // Channels [first, first + kBlock) of an image. A line is unpacked or transposed as sparse_linear's tiles are.
  void fill(int64_t image, int64_t first, float* memory) const {
    const int64_t channels = std::min(kBlock, c_.channels - first), pixels = c_.height * c_.width;
    const int64_t element = element_size(dtype_);
    const char* x = x_ + image * c_.channels * pixels * element;
    float* to = memory + (image * c_.channels + first) * plane();
    std::memset(to, 0, static_cast<size_t>(channels * plane()) * 4);
    to += c_.padding[0] * c_.padded_width + c_.padding[2];
    for (int64_t y = 0; y < c_.height; ++y, to += c_.padded_width) {
      if (!c_.channels_last) {
        for (int64_t c = 0; c < channels; ++c)
          tile_kernels().pack(x + ((first + c) * pixels + y * c_.width) * element, dtype_, c_.width, 1, c_.width, 1,
                              to + c * plane());
        continue;
      }
      for (int64_t from = 0; from < c_.width; from += kTileRows) {
        const int64_t rows = std::min(kTileRows, c_.width - from), width = tile_width(rows);
        alignas(64) float tile[kBlock * kTileRows];
        tile_kernels().pack(x + ((y * c_.width + from) * c_.channels + first) * element, dtype_, c_.channels, rows,
                            channels, width, tile);
        for (int64_t c = 0; c < channels; ++c)
          std::memcpy(to + c * plane() + from, tile + c * width, static_cast<size_t>(rows) * 4);
      }
    }
  }

  const Conv2d& c_;
  const char* x_;
  DType dtype_;
};

struct SparseConv2d {
  const Conv2d& c;
  const PanelCsr& w;
  const View &values, &out;
  const Planes& planes;
  const float* bias;
  std::vector<int64_t> offset;  // [k] of the window's element k from the output pixel's first one

  void set_offsets() {
    for (int64_t channel = 0; channel < c.group_channels; ++channel)
      for (int64_t i = 0; i < c.kernel[0]; ++i)
        for (int64_t j = 0; j < c.kernel[1]; ++j)
          offset.push_back(channel * planes.plane() + i * c.dilation[0] * c.padded_width + j * c.dilation[1]);
  }

  // Where output pixels [first, first + pixels) of an image read, line by line.
  int64_t find_runs(int64_t first, int64_t pixels, ConvRun* runs) const {
    int64_t count = 0, y = first / c.out_width, x = first % c.out_width;
    for (int64_t to = 0; to < pixels; ++y, x = 0) {
      const int64_t lanes = std::min(c.out_width - x, pixels - to);
      runs[count++] = {y * c.stride[0] * c.padded_width + x * c.stride[1], to, lanes};
      to += lanes;
    }
    return count;
  }

  void store(const float* y, int64_t image, int64_t first, int64_t pixels, int64_t n, int64_t rows) const {
    const int64_t width = tile_width(pixels), element = element_size(out.dtype);
    const float* b = bias ? bias + n : nullptr;
    if (c.channels_last) {
      char* to = out.as<char>() + ((image * c.out_pixels() + first) * c.outputs + n) * element;
      tile_kernels().unpack(y, pixels, rows, width, b, to, out.dtype, c.outputs);
    } else {
      char* to = out.as<char>() + ((image * c.outputs + n) * c.out_pixels() + first) * element;
      variants.pick()->store(y, rows, width, pixels, b, to, out.dtype, c.out_pixels());
    }
  }

  // Outputs [begin, end) of one group, for tile `index` of an image's output pixels; false without memory.
  bool run(int64_t image, int64_t group, int64_t index, int64_t begin, int64_t end) const {
    const int64_t first = index * kTileRows, pixels = std::min(kTileRows, c.out_pixels() - first);
    const int64_t width = tile_width(pixels);
    ConvRun runs[kTileRows];
    ConvTile t = {};
    t.planes = planes.data + (image * c.channels + group * c.group_channels) * planes.plane();
    t.runs = runs, t.run_count = find_runs(first, pixels, runs);
    t.step = c.stride[1], t.width = width;
    t.tile = floats(kTileSlot, kPanelColumns * width + kConvTileSlack);
    float* y = floats(kSumSlot, kBlockRows * width);
    if (!t.tile || !y) return false;
    if (pixels < width) std::memset(t.tile, 0, static_cast<size_t>(kPanelColumns * width) * 4);
    for (int64_t n = begin; n < end; n += kBlockRows) {
      const int64_t rows = std::min(kBlockRows, end - n), row = group * c.group_outputs + n;
      std::memset(y, 0, static_cast<size_t>(rows * width) * 4);
      for (int64_t p = 0; p < w.panels; ++p) {
        t.offset = offset.data() + p * w.panel;
        t.columns = std::min(w.panel, c.k - p * w.panel);
        variants.pick()->gather(t);
        products.pick()->multiply(t.tile, width, w.segments(values.data, values.dtype, p, row, rows), y);
      }
      store(y, image, first, pixels, row, rows);
    }
    return true;
  }
};

}  // namespace

void sparse_conv2d(const View& x, const View& values, const View& crow, const View& col, const View* bias,
                   const View& out, const ConvWindow& window, int64_t panel, bool channels_last) {
  const Conv2d c = check_conv2d(x, out, window, channels_last);
  if (values.dtype != DType::f32) check_dtype(values, "values", x.dtype);
  check_ndim(values, "values", 1);
  check_contiguous(values, "values");
  const PanelCsr w = check_panel_csr(crow, col, nullptr, values.sizes[0], c.outputs, c.k, panel);
  check_bias(bias, c.outputs);
  if (out.numel() == 0) return;
  std::vector<float> converted(bias && bias->dtype != DType::f32 ? c.outputs : 0);
  const Planes planes(c, x);
  SparseConv2d op{c, w, values, out, planes, bias_as_float(bias, converted.data()), {}};
  op.set_offsets();
  const int64_t tiles = ceil_div(c.out_pixels(), kTileRows), items = c.batch * c.groups * tiles;
  const int64_t work = c.batch * c.out_pixels() * w.nnz, threads = work < kSerialWork ? 1 : num_threads();
  const int64_t parts = items >= 2 * threads ? 1 : ceil_div(threads, items);  // of the outputs: each gathers again
  std::atomic<bool> ok{true};
  parallel_for(items * parts, threads == 1 ? items * parts : 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t part = i % parts, item = i / parts;
      const int64_t begin = part_begin(c.group_outputs, parts, 1, part);
      const int64_t end = part_begin(c.group_outputs, parts, 1, part + 1);
      if (begin < end && !op.run(item / tiles / c.groups, item / tiles % c.groups, item % tiles, begin, end))
        ok = false;
    }
  });
  if (!ok) throw std::bad_alloc();
}

}  // namespace bigmodel
