#include "int8_sparse_linear.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "../common/check.h"
#include "../common/scratch.h"
#include "isa.h"
#include "panel_csr.h"
#include "quantize_rows.h"

namespace bigmodel {
namespace {

#if defined(__x86_64__)
constexpr Variants<const Int8SparseKernels*> variants = {
    {&int8_sparse_kernels_scalar, &int8_sparse_kernels_avx2, nullptr, &int8_sparse_kernels_avx512vnni}};
constexpr Variants<Int8SparseRowKernel> quick_rows = {{nullptr, nullptr, nullptr, nullptr, int8_sparse_row_avx512vbmi}};
#else
constexpr Variants<const Int8SparseKernels*> variants = {{&int8_sparse_kernels_scalar, nullptr, nullptr, nullptr}};
constexpr Variants<Int8SparseRowKernel> quick_rows = {};
#endif
const KernelLevel level_of_int8_sparse_linear("int8_sparse_linear",
                                              [] { return std::max(variants.level(), quick_rows.level()); });

Int8SparseRowKernel row_kernel() {
  const auto quick = quick_rows.pick();
  return quick ? quick : variants.pick()->multiply_row;
}

enum Slot { kTileSlot, kSumSlot, kQuantizedSlot };

struct Forward {
  const Int8SparseKernels& kernels;
  Int8SparseRowKernel multiply_row;
  const TileKernels& tiles;
  QuantizeRowsKernel quantize;
  const View &x, &values, &weight_scale, &row_sum, &out;
  ActivateRows activate;
  PanelCsr w;  // w.k counts blocks
  const float* bias;

  // Quantizes `rows` rows and lays out their words as a tile followed by 256 columns of zeros; null without memory.
  const uint32_t* packed_tile(int64_t first, int64_t rows, int64_t width, float* scale) const {
    const int64_t k = x.sizes[x.ndim - 1], bytes = w.k * 4;
    auto* q = static_cast<uint8_t*>(scratch(kQuantizedSlot, static_cast<size_t>(rows * bytes)));
    auto* tile = static_cast<uint32_t*>(scratch(kTileSlot, static_cast<size_t>((w.k + kPanelColumns) * width) * 4));
    if (!q || !tile) return nullptr;
    quantize(x.as<char>() + first * k * element_size(x.dtype), x.dtype, rows, k, k, q, bytes, 128, scale);
    tiles.pack(q, DType::f32, w.k, rows, w.k, width, reinterpret_cast<float*>(tile));
    std::memset(tile + w.k * width, 0, static_cast<size_t>(kPanelColumns * width) * 4);
    return tile;
  }

  void finish(uint32_t* y, int64_t width, int64_t rows, int64_t first, int64_t n, int64_t block,
              const float* scale) const {
    kernels.scale(y, width, block, row_sum.as<int32_t>() + n, scale, weight_scale.as<float>() + n);
    unpack_activated(activate, reinterpret_cast<float*>(y), rows, block, width, bias ? bias + n : nullptr,
                     out.as<char>() + (first * w.n + n) * element_size(out.dtype), out.dtype, w.n);
  }

  // The block of rows that begins at n, in panel p.
  Segments segments(int64_t p, int64_t n, int64_t end) const {
    return w.segments(values.data, values.dtype, p, n, std::min(w.block, end - n));
  }

  bool few(int64_t first, int64_t rows, int64_t begin, int64_t end) const {
    auto* y = static_cast<uint32_t*>(scratch(kSumSlot, static_cast<size_t>(tile_width(end - begin)) * 4));
    for (int64_t m = first; y && m < first + rows; ++m) {
      float scale;
      const uint32_t* tile = packed_tile(m, 1, 1, &scale);
      if (!tile) return false;
      for (int64_t n = begin; n < end; n += w.block)
        multiply_row(tile, segments(0, n, end), w.n, w.order_stride, w.panels, w.panel, y + n - begin);
      finish(y, 1, 1, m, begin, end - begin, &scale);
    }
    return y;
  }

  bool many(int64_t first, int64_t rows, int64_t begin, int64_t end) const {
    const int64_t width = tile_width(rows);
    float scale[kTileRows] = {};
    const uint32_t* tile = packed_tile(first, rows, width, scale);
    auto* y = static_cast<uint32_t*>(scratch(kSumSlot, static_cast<size_t>(kBlockRows * width) * 4));
    if (!tile || !y) return false;
    for (int64_t n = begin; n < end; n += w.block) {
      const int64_t block = std::min(w.block, end - n);
      std::memset(y, 0, static_cast<size_t>(block * width) * 4);
      for (int64_t p = 0; p < w.panels; ++p)
        kernels.multiply(tile + p * w.panel * width, width, segments(p, n, end), y);
      finish(y, width, rows, first, n, block, scale);
    }
    return true;
  }
};

void check_vector(const View& v, const char* name, DType dtype) {
  check_dtype(v, name, dtype);
  check_ndim(v, name, 1);
  check_contiguous(v, name);
}

}  // namespace

void int8_sparse_linear(const View& x, const View& values, const View& crow, const View& col, const View* order,
                        const View& weight_scale, const View& row_sum, const View* bias, const View& out, int64_t panel,
                        const char* activation) {
  check_float(x, "x");
  check_dtype(values, "values", DType::i8);
  BIGMODEL_CHECK(values.ndim == 2 && values.sizes[1] == 4, "values must be [blocks,4], got shape ",
                 shape_string(values));
  check_contiguous(values, "values");
  check_vector(weight_scale, "weight_scale", DType::f32);
  check_vector(row_sum, "row_sum", DType::i32);
  const int64_t m = check_features(x, "x");
  check_out(x, out);
  const int64_t n = weight_scale.sizes[0], k = x.sizes[x.ndim - 1];
  check_size(row_sum, "row_sum", 0, n);
  check_size(out, "out", out.ndim - 1, n);
  BIGMODEL_CHECK(k <= kInt8MaxK, "K must be at most ", kInt8MaxK, " for an exact int32 sum, got ", k);
  const PanelCsr w = check_panel_csr(crow, col, order, values.sizes[0], n, (k + 3) / 4, panel);
  check_bias(bias, n);
  std::vector<float> converted(bias && bias->dtype != DType::f32 ? n : 0);
  const Forward op{*variants.pick(),
                   row_kernel(),
                   tile_kernels(),
                   quantize_rows_kernel(),
                   x,
                   values,
                   weight_scale,
                   row_sum,
                   out,
                   activate_rows(activation),
                   w,
                   bias_as_float(bias, converted.data())};
  for_each_tile(m, n, w.step, m * w.nnz, [&](int64_t tile, int64_t begin, int64_t end) {
    const int64_t first = tile * kTileRows, rows = std::min(kTileRows, m - first);
    return row_by_row(rows, w.nnz) ? op.few(first, rows, begin, end) : op.many(first, rows, begin, end);
  });
}

}  // namespace bigmodel
