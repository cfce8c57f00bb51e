#include "semi_sparse_linear.h"

#include <algorithm>
#include <vector>

#include "../common/check.h"
#include "../common/scratch.h"
#include "block_sparse_linear.h"
#include "grad_values.h"
#include "isa.h"
#include "panel_csr.h"
#include "row_panels.h"
#include "tiles.h"

namespace bigmodel {
namespace {

#if defined(__x86_64__)
constexpr Variants<const SemiKernels*> variants = {
    {&semi_kernels_scalar, &semi_kernels_avx2, &semi_kernels_avx512, nullptr}};
#else
constexpr Variants<const SemiKernels*> variants = {{&semi_kernels_scalar, nullptr, nullptr, nullptr}};
#endif
const KernelLevel level_of_multiply("semi_sparse_linear", [] { return variants.level(); });
const KernelLevel level_of_grad_input("semi_sparse_linear_grad_input", [] { return variants.level(); });
const KernelLevel level_of_grad_values("semi_sparse_linear_grad_values", [] { return variants.level(); });

constexpr int64_t kPassTiles = 64;  // whose values (128 KiB) stay in L2 while all row groups read them in turn
constexpr int64_t kPassDense = 32;  // the same, expanded
constexpr int64_t kTileArea = kSemiTile * kSemiTile;

enum Slot { kPanelSlot, kSumSlot, kTileSlot };

float* floats(int slot, int64_t count) { return static_cast<float*>(scratch(slot, static_cast<size_t>(count) * 4)); }

struct Tiles {
  const char* values;
  DType dtype;
  const uint8_t* index;
  int64_t n, k, rows, columns;  // the last two count tiles

  const void* tile(int64_t row, int64_t column) const {
    return values + (row * columns + column) * kSemiValues * element_size(dtype);
  }
  const uint8_t* tile_index(int64_t row, int64_t column) const {
    return index + (row * columns + column) * kSemiIndexBytes;
  }
};

Tiles check_tiles(const View& values, const View& index, int64_t n, int64_t k) {
  const int64_t rows = panels_for(n, kSemiTile), columns = panels_for(k, kSemiTile);
  check_shape(values, "values", {rows, columns, kSemiGroups, 2, kSemiTile});
  check_contiguous(values, "values");
  check_dtype(index, "index", DType::u8);
  check_shape(index, "index", {rows, columns, kSemiTile, kSemiIndexBytes / kSemiTile});
  check_contiguous(index, "index");
  return {values.as<char>(), values.dtype, index.as<uint8_t>(), n, k, rows, columns};
}

}  // namespace

void semi_sparse_linear(const View& x, const View& values, const View& index, const View* bias, const View& out) {
  check_weight_dtype(values, x, "x");
  const int64_t m = check_features(x, "x");
  check_out(x, out);
  const int64_t n = out.sizes[out.ndim - 1], k = x.sizes[x.ndim - 1];
  const Tiles w = check_tiles(values, index, n, k);
  check_bias(bias, n);
  std::vector<float> converted(bias && bias->dtype != DType::f32 ? n : 0);
  const float* b = bias_as_float(bias, converted.data());
  const SemiKernels& kernels = *variants.pick();
  for_each_rows(m, m * n * k / 2, [&](int64_t first, int64_t rows, int64_t part, int64_t parts) {
    const int64_t padded = padded_rows(rows);
    const float* panels = packed_rows(kPanelSlot, x, first, rows, 0, k, kSemiTile);
    float* y = floats(kSumSlot, padded * kSemiTile);
    if (!panels || !y) return false;
    for (int64_t r = w.rows * part / parts; r < w.rows * (part + 1) / parts; ++r) {
      int64_t c = 0;
      do {
        const int64_t count = std::min(kPassTiles, w.columns - c);
        kernels.multiply(panels + c * padded * kSemiTile, padded, w.tile(r, c), w.dtype, w.tile_index(r, c), count,
                         c > 0, y);
        c += count;
      } while (c < w.columns);
      unpack_rows(y, first, rows, r, kSemiTile, b, out);
    }
    return true;
  });
}

void semi_sparse_linear_grad_input(const View& grad, const View& values, const View& index, const View& out) {
  check_weight_dtype(values, grad, "grad");
  const int64_t m = check_features(grad, "grad");
  check_out(grad, out);
  const int64_t n = grad.sizes[grad.ndim - 1], k = out.sizes[out.ndim - 1];
  const Tiles w = check_tiles(values, index, n, k);
  const SemiKernels& kernels = *variants.pick();
  const TileKernels& tiles = tile_kernels();
  for_each_rows(m, m * n * k, [&](int64_t first, int64_t rows, int64_t part, int64_t parts) {
    const int64_t padded = padded_rows(rows);
    const float* panels = packed_rows(kPanelSlot, grad, first, rows, 0, n, kSemiTile);
    float *dx = floats(kSumSlot, padded * kSemiTile), *dense = floats(kTileSlot, (kPassDense + 1) * kTileArea);
    if (!panels || !dx || !dense) return false;
    int32_t column[kPassDense];
    for (int32_t i = 0; i < kPassDense; ++i) column[i] = i;
    float* expanded = dense + kPassDense * kTileArea;
    for (int64_t c = w.columns * part / parts; c < w.columns * (part + 1) / parts; ++c) {
      int64_t r = 0;
      do {
        const int64_t count = std::min(kPassDense, w.rows - r);
        for (int64_t j = 0; j < count; ++j) {
          kernels.expand(w.tile(r + j, c), w.dtype, w.tile_index(r + j, c), expanded);
          tiles.pack(expanded, DType::f32, kSemiTile, kSemiTile, kSemiTile, kSemiTile, dense + j * kTileArea);
        }
        block_kernels().multiply(panels + r * padded * kSemiTile, padded, dense, DType::f32, kSemiTile, column, count,
                                 r > 0, dx);
        r += count;
      } while (r < w.rows);
      unpack_rows(dx, first, rows, c, kSemiTile, nullptr, out);
    }
    return true;
  });
}

namespace {

// What a tile holds beyond N and K stays 0 in training, whatever the activations are.
void zero_outside(const Tiles& w, int64_t row, int64_t column, float* dvalues) {
  const int64_t inputs = w.k - column * kSemiTile, outputs = w.n - row * kSemiTile;
  const uint8_t* index = w.tile_index(row, column);
  for (int64_t slot = 0; slot < kSemiGroups * 2; ++slot) {
    for (int64_t n = 0; n < kSemiTile; ++n) {
      const int64_t k = slot / 2 * 4 + (index[n * 4 + slot / 4] >> (slot % 4 * 2) & 3);
      if (n >= outputs || k >= inputs) dvalues[slot * kSemiTile + n] = 0.0f;
    }
  }
}

// The tiles of rows [begin, end) over all of M.
bool grad_values_of(const Tiles& w, const View& grad, const View& x, int64_t m, int64_t begin, int64_t end,
                    float* dvalues) {
  for (int64_t first = 0; first < m; first += kRowsAtOnce) {
    const int64_t rows = std::min(kRowsAtOnce, m - first), padded = padded_rows(rows), panel = padded * kSemiTile;
    const float* from = packed_rows(kPanelSlot, x, first, rows, 0, w.k, kSemiTile);
    const float* g =
        packed_rows(kTileSlot, grad, first, rows, begin * kSemiTile, std::min(w.n, end * kSemiTile), kSemiTile);
    if (!from || !g) return false;
    for (int64_t r = begin; r < end; ++r)
      for (int64_t c = 0; c < w.columns; ++c)
        variants.pick()->grad_values(from + c * panel, g + (r - begin) * panel, padded, w.tile_index(r, c), first > 0,
                                     dvalues + (r * w.columns + c) * kSemiValues);
  }
  for (int64_t r = begin; r < end; ++r)
    for (int64_t c = 0; c < w.columns; ++c)
      if ((r + 1) * kSemiTile > w.n || (c + 1) * kSemiTile > w.k)
        zero_outside(w, r, c, dvalues + (r * w.columns + c) * kSemiValues);
  return true;
}

}  // namespace

void semi_sparse_linear_grad_values(const View& grad, const View& x, const View& index, const View& out) {
  const int64_t m = check_gradient(grad, x, out);
  const int64_t n = grad.sizes[grad.ndim - 1], k = x.sizes[x.ndim - 1];
  const Tiles w = check_tiles(out, index, n, k);
  fill_grad_values(out, m, m * n * k / 2, [&](int64_t first, int64_t last, int64_t parts, float* dvalues) {
    const int64_t begin = w.rows * first / parts, end = w.rows * last / parts;
    return begin == end || grad_values_of(w, grad, x, m, begin, end, dvalues);
  });
}

}  // namespace bigmodel
