#include <atomic>
#include <cstring>
#include <new>

#include "../common/scratch.h"
#include "int8_conv2d_job.h"
#include "int8_gemm.h"

namespace bigmodel {
namespace {

constexpr int64_t kRowTile = 6;           // rows of every wide kernel's register tile
constexpr int64_t kRowBytes = 128 << 10;  // rows of the product that stay in L2 beside a panel and their sums
constexpr int64_t kMaxRows = 512;

}  // namespace

// Rows [row, row + rows) of the product (output pixels over the images) of one group by its panels [panel, panel_end).
struct Int8Conv2d::Item {
  int64_t first, group, row, rows, panel, panel_end;
};

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
  const ConvImageKernels& kernels = conv_image_kernels();
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
    conv_image_kernels().rows({image(item.group, 0), image_bytes_, c_.stride[0] * line,
                               c_.stride[1] * c_.group_channels, c_.out_height, c_.out_width, offsets_.data(),
                               static_cast<int64_t>(offsets_.size()), segment_bytes_, item.row, item.rows, made,
                               stride});
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

}  // namespace bigmodel
