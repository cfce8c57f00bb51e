#include "sparse_linear.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "../common/check.h"
#include "../common/pages.h"
#include "../common/scratch.h"
#include "isa.h"
#include "panel_csr.h"

namespace bigmodel {
namespace {

#if defined(__x86_64__)
constexpr Variants<const SparseKernels*> variants = {
    {&sparse_kernels_scalar, &sparse_kernels_avx2, &sparse_kernels_avx512, nullptr}};
constexpr Variants<SparseRowKernel> quick_rows = {{nullptr, nullptr, nullptr, nullptr, sparse_row_avx512vbmi}};
#else
constexpr Variants<const SparseKernels*> variants = {{&sparse_kernels_scalar, nullptr, nullptr, nullptr}};
constexpr Variants<SparseRowKernel> quick_rows = {};
#endif
const KernelLevel level_of_sparse_linear("sparse_linear",
                                         [] { return std::max(variants.level(), quick_rows.level()); });
const KernelLevel level_of_sparse_linear_grad_input("sparse_linear_grad_input", [] { return variants.level(); });
const KernelLevel level_of_sparse_linear_grad_values("sparse_linear_grad_values", [] { return variants.level(); });

SparseRowKernel row_kernel() {
  const auto quick = quick_rows.pick();
  return quick ? quick : variants.pick()->multiply_row;
}

enum Slot { kTileSlot, kSumSlot, kBiasSlot };

float* floats(Slot slot, int64_t count) { return static_cast<float*>(scratch(slot, static_cast<size_t>(count) * 4)); }

// The tile of `rows` rows of x [.., columns], followed by `more` columns of zeros; null without memory.
float* packed_tile(const TileKernels& tiles, const View& x, int64_t first, int64_t rows, int64_t columns, int64_t width,
                   int64_t more = kPanelColumns) {
  float* tile = floats(kTileSlot, (columns + more) * width);
  if (!tile) return nullptr;
  tiles.pack(x.as<char>() + first * columns * element_size(x.dtype), x.dtype, columns, rows, columns, width, tile);
  std::memset(tile + columns * width, 0, static_cast<size_t>(more * width) * 4);
  return tile;
}

struct Forward {
  const SparseKernels& kernels;
  SparseRowKernel multiply_row;
  const TileKernels& tiles;
  const View &x, &values, &out;
  ActivateRows activate;
  PanelCsr w;
  const float* bias;

  // Sums y of the outputs [begin, end) of `rows` rows from m on.
  void finish(float* y, int64_t width, int64_t m, int64_t rows, int64_t begin, int64_t end) const {
    unpack_activated(activate, y, rows, end - begin, width, bias ? bias + begin : nullptr,
                     out.as<char>() + (m * w.n + begin) * element_size(out.dtype), out.dtype, w.n);
  }

  // The block of rows that begins at n, in panel p.
  Segments segments(int64_t p, int64_t n, int64_t end) const {
    return w.segments(values.data, values.dtype, p, n, std::min(w.block, end - n));
  }

  bool few(int64_t first, int64_t rows, int64_t begin, int64_t end) const {
    float* y = floats(kSumSlot, tile_width(end - begin));
    for (int64_t m = first; y && m < first + rows; ++m) {
      const float* tile = packed_tile(tiles, x, m, 1, w.k, 1);
      if (!tile) return false;
      for (int64_t n = begin; n < end; n += w.block)
        multiply_row(tile, segments(0, n, end), w.n, w.order_stride, w.panels, w.panel, y + n - begin);
      finish(y, 1, m, 1, begin, end);
    }
    return y;
  }

  bool many(int64_t first, int64_t rows, int64_t begin, int64_t end) const {
    const int64_t width = tile_width(rows);
    const float* tile = packed_tile(tiles, x, first, rows, w.k, width);
    float* y = floats(kSumSlot, kBlockRows * width);
    if (!tile || !y) return false;
    for (int64_t n = begin; n < end; n += w.block) {
      const int64_t block = std::min(w.block, end - n);
      std::memset(y, 0, static_cast<size_t>(block * width) * 4);
      for (int64_t p = 0; p < w.panels; ++p)
        kernels.multiply(tile + p * w.panel * width, width, segments(p, n, end), y);
      finish(y, width, first, rows, n, n + block);
    }
    return true;
  }
};

void check_values(const View& values, const View& x, const char* x_name) {
  check_float(x, x_name);
  if (values.dtype != DType::f32 && values.dtype != x.dtype)
    throw TypeError(message("values must be float32", x.dtype == DType::f32 ? "" : " or ",
                            x.dtype == DType::f32 ? "" : dtype_name(x.dtype), ", got ", dtype_name(values.dtype)));
  check_ndim(values, "values", 1);
  check_contiguous(values, "values");
}

}  // namespace

void sparse_linear(const View& x, const View& values, const View& crow, const View& col, const View* order,
                   const View* bias, const View& out, int64_t panel, const char* activation) {
  check_values(values, x, "x");
  const int64_t m = check_features(x, "x");
  check_out(x, out);
  const int64_t n = out.sizes[out.ndim - 1], k = x.sizes[x.ndim - 1];
  const PanelCsr w = check_panel_csr(crow, col, order, values.sizes[0], n, k, panel);
  check_bias(bias, n);
  std::vector<float> converted(bias && bias->dtype != DType::f32 ? n : 0);
  const Forward op{*variants.pick(),
                   row_kernel(),
                   tile_kernels(),
                   x,
                   values,
                   out,
                   activate_rows(activation),
                   w,
                   bias_as_float(bias, converted.data())};
  for_each_tile(m, n, w.step, m * w.nnz, [&](int64_t tile, int64_t begin, int64_t end) {
    const int64_t first = tile * kTileRows, rows = std::min(kTileRows, m - first);
    return row_by_row(rows, w.nnz) ? op.few(first, rows, begin, end) : op.many(first, rows, begin, end);
  });
}

void sparse_linear_grad_input(const View& grad, const View& values, const View& crow, const View& col,
                              const View* order, const View& out, int64_t panel) {
  check_values(values, grad, "grad");
  const int64_t m = check_features(grad, "grad");
  check_out(grad, out);
  const int64_t n = grad.sizes[grad.ndim - 1], k = out.sizes[out.ndim - 1];
  const PanelCsr w = check_panel_csr(crow, col, order, values.sizes[0], n, k, panel);
  const SparseKernels& kernels = *variants.pick();
  const TileKernels& tiles = tile_kernels();
  for_each_tile(m, w.panels, 1, m * w.nnz, [&](int64_t index, int64_t begin, int64_t end) {
    const int64_t first = index * kTileRows, rows = std::min(kTileRows, m - first), width = tile_width(rows);
    const float* tile = packed_tile(tiles, grad, first, rows, n, width, kBlockRows);
    float* dx = floats(kSumSlot, kPanelColumns * width);
    if (!tile || !dx) return false;
    for (int64_t p = begin; p < end; ++p) {
      const int64_t columns = std::min(panel, k - p * panel);
      std::memset(dx, 0, static_cast<size_t>(columns * width) * 4);
      for (int64_t r = 0; r < n; r += w.block)
        kernels.grad_input(tile + r * width, width,
                           w.segments(values.data, values.dtype, p, r, std::min(w.block, n - r)), dx);
      tiles.unpack(dx, rows, columns, width, nullptr,
                   out.as<char>() + (first * k + p * panel) * element_size(out.dtype), out.dtype, k);
    }
    return true;
  });
}

namespace {

struct GradValues {
  const SparseKernels& kernels;
  const TileKernels& tiles;
  const View &grad, &x;
  PanelCsr w;
  int64_t m;
  float* dvalues;

  // Entries of rows [begin, end) over all of M.
  bool run(int64_t begin, int64_t end) const {
    for (int64_t first = 0; first < m; first += kTileRows) {
      const int64_t rows = std::min(kTileRows, m - first), width = tile_width(rows);
      const float* tile = packed_tile(tiles, x, first, rows, w.k, width);
      float* g = floats(kSumSlot, (end - begin + kBlockRows) * width);
      if (!tile || !g) return false;
      tiles.pack(grad.as<char>() + (first * w.n + begin) * element_size(grad.dtype), grad.dtype, w.n, rows, end - begin,
                 width, g);
      for (int64_t p = 0; p < w.panels; ++p)
        for (int64_t n = begin; n < end; n += w.block)
          kernels.grad_values(g + (n - begin) * width, tile + p * w.panel * width, width,
                              w.segments(nullptr, DType::f32, p, n, std::min(w.block, end - n)), first > 0, dvalues);
    }
    return true;
  }
};

}  // namespace

void sparse_linear_grad_values(const View& grad, const View& x, const View& crow, const View& col, const View* order,
                               const View& out, int64_t panel) {
  check_float(grad, "grad");
  check_dtype(x, "x", grad.dtype);
  const int64_t m = check_features(x, "x");
  check_features(grad, "grad");
  check_ndim(grad, "grad", x.ndim);
  for (int d = 0; d + 1 < x.ndim; ++d) check_size(grad, "grad", d, x.sizes[d]);
  check_dtype(out, "out", grad.dtype);
  check_ndim(out, "out", 1);
  check_contiguous(out, "out");
  const int64_t n = grad.sizes[grad.ndim - 1], k = x.sizes[x.ndim - 1];
  const PanelCsr w = check_panel_csr(crow, col, order, out.sizes[0], n, k, panel);
  const TileKernels& tiles = tile_kernels();
  const bool in_place = out.dtype == DType::f32;
  if (in_place) about_to_write(out.data, static_cast<size_t>(w.nnz) * 4);
  std::vector<float> wide(in_place ? 0 : w.nnz);
  float* dvalues = in_place ? out.as<float>() : wide.data();
  if (m == 0) std::fill(dvalues, dvalues + w.nnz, 0.0f);
  const GradValues op{*variants.pick(), tiles, grad, x, w, m, dvalues};
  const int64_t threads = m * w.nnz < kSerialWork ? 1 : num_threads();
  std::atomic<bool> ok{true};
  parallel_for(threads, 1, [&](int64_t first, int64_t last) {
    const int64_t begin = part_begin(n, threads, w.step, first), end = part_begin(n, threads, w.step, last);
    if (begin < end && !op.run(begin, end)) ok = false;
  });
  if (!ok) throw std::bad_alloc();
  if (!in_place) tiles.unpack(dvalues, 1, w.nnz, 1, nullptr, out.data, out.dtype, w.nnz);
}

}  // namespace bigmodel
