#include "block_sparse_linear.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "../common/check.h"
#include "../common/scratch.h"
#include "grad_values.h"
#include "isa.h"
#include "panel_csr.h"
#include "row_panels.h"
#include "tiles.h"

namespace bigmodel {
namespace {

#if defined(__x86_64__)
constexpr Variants<const BlockKernels*> variants = {
    {&block_kernels_scalar, &block_kernels_avx2, &block_kernels_avx512, nullptr}};
#else
constexpr Variants<const BlockKernels*> variants = {{&block_kernels_scalar, nullptr, nullptr, nullptr}};
#endif
const KernelLevel level_of_multiply("block_sparse_linear", [] { return variants.level(); });
const KernelLevel level_of_grad_input("block_sparse_linear_grad_input", [] { return variants.level(); });
const KernelLevel level_of_grad_values("block_sparse_linear_grad_values", [] { return variants.level(); });

constexpr int64_t kPassBytes = 128 << 10;  // of weights, which all row groups read in turn: they stay in L2

enum Slot { kPanelSlot, kSumSlot, kBlockSlot };

// Blocks of a column do not follow one another in memory.
void prefetch(const void* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(from) + i);
}

float* floats(Slot slot, int64_t count) { return static_cast<float*>(scratch(slot, static_cast<size_t>(count) * 4)); }

struct Blocks {
  const char* values;
  DType dtype;
  const int32_t *crow, *col;
  int64_t n, k, size, block_rows, block_columns, count;

  const void* block(int64_t i) const { return values + i * size * size * element_size(dtype); }
  int64_t per_pass() const { return std::max<int64_t>(1, kPassBytes / (size * size * 4)); }
  int64_t work(int64_t m) const { return m * count * size * size; }

  // Where part i of `parts` parts with about as many blocks each begins.
  int64_t part_begin(int64_t i, int64_t parts) const { return cut(crow, block_rows, i, parts); }
  static int64_t cut(const int32_t* ends, int64_t rows, int64_t i, int64_t parts) {
    if (i == 0 || i == parts) return i == 0 ? 0 : rows;
    const int64_t wanted = static_cast<int64_t>(ends[rows]) * i / parts;
    return std::lower_bound(ends, ends + rows, wanted) - ends;
  }
};

Blocks check_blocks(const View& values, const View& crow, const View& col, int64_t n, int64_t k) {
  check_ndim(values, "values", 3);
  const int64_t size = values.sizes[1], count = values.sizes[0];
  BIGMODEL_CHECK(values.sizes[2] == size && (size == 16 || size == 32 || size == 64),
                 "values must have shape [blocks, S, S] with S 16, 32 or 64, got ", shape_string(values));
  check_contiguous(values, "values");
  check_dtype(crow, "crow", DType::i32);
  check_dtype(col, "col", DType::i32);
  const int64_t block_rows = panels_for(n, size), block_columns = panels_for(k, size);
  check_shape(crow, "crow", {block_rows + 1});
  check_shape(col, "col", {count});
  check_contiguous(crow, "crow");
  check_contiguous(col, "col");
  const int32_t *ends = crow.as<int32_t>(), *columns = col.as<int32_t>();
  BIGMODEL_CHECK(ends[0] == 0, "crow must begin with 0, got ", ends[0]);
  BIGMODEL_CHECK(ends[block_rows] == count, "crow must end with the number of blocks, ", count, ", got ",
                 ends[block_rows]);
  for (int64_t i = 0; i < block_rows; ++i)
    BIGMODEL_CHECK(ends[i + 1] >= ends[i], "crow must not decrease, got ", ends[i], " and then ", ends[i + 1],
                   " at index ", i + 1);
  for (int64_t i = 0; i < count; ++i)
    BIGMODEL_CHECK(columns[i] >= 0 && columns[i] < block_columns, "col must be in [0, ", block_columns, "), got ",
                   columns[i], " at index ", i);
  return {values.as<char>(), values.dtype, ends, columns, n, k, size, block_rows, block_columns, count};
}

}  // namespace

const BlockKernels& block_kernels() { return *variants.pick(); }

void block_sparse_linear(const View& x, const View& values, const View& crow, const View& col, const View* bias,
                         const View& out) {
  check_weight_dtype(values, x, "x");
  const int64_t m = check_features(x, "x");
  check_out(x, out);
  const int64_t n = out.sizes[out.ndim - 1], k = x.sizes[x.ndim - 1];
  const Blocks w = check_blocks(values, crow, col, n, k);
  check_bias(bias, n);
  std::vector<float> converted(bias && bias->dtype != DType::f32 ? n : 0);
  const float* b = bias_as_float(bias, converted.data());
  const BlockKernels& kernels = block_kernels();
  for_each_rows(m, w.work(m), [&](int64_t first, int64_t rows, int64_t part, int64_t parts) {
    const float* panels = packed_rows(kPanelSlot, x, first, rows, 0, k, w.size);
    const int64_t padded = padded_rows(rows), pass = w.per_pass();
    float* y = floats(kSumSlot, padded * w.size);
    if (!panels || !y) return false;
    for (int64_t r = w.part_begin(part, parts); r < w.part_begin(part + 1, parts); ++r) {
      int64_t i = w.crow[r];
      do {
        const int64_t count = std::min<int64_t>(pass, w.crow[r + 1] - i);
        kernels.multiply(panels, padded, w.block(i), w.dtype, w.size, w.col + i, count, i > w.crow[r], y);
        i += count;
      } while (i < w.crow[r + 1]);
      unpack_rows(y, first, rows, r, w.size, b, out);
    }
    return true;
  });
}

namespace {

// The blocks by column: those of block column c are order[ends[c]] to order[ends[c + 1]], and lie in block rows `row`.
struct ByColumn {
  std::vector<int32_t> ends, row, order;

  explicit ByColumn(const Blocks& w) : ends(w.block_columns + 1), row(w.count), order(w.count) {
    for (int64_t i = 0; i < w.count; ++i) ++ends[w.col[i] + 1];
    for (int64_t c = 0; c < w.block_columns; ++c) ends[c + 1] += ends[c];
    std::vector<int32_t> next(ends.begin(), ends.end() - 1);
    for (int64_t r = 0; r < w.block_rows; ++r) {
      for (int32_t i = w.crow[r]; i < w.crow[r + 1]; ++i) {
        const int32_t to = next[w.col[i]]++;
        row[to] = static_cast<int32_t>(r);
        order[to] = i;
      }
    }
  }
};

}  // namespace

void block_sparse_linear_grad_input(const View& grad, const View& values, const View& crow, const View& col,
                                    const View& out) {
  check_weight_dtype(values, grad, "grad");
  const int64_t m = check_features(grad, "grad");
  check_out(grad, out);
  const int64_t n = grad.sizes[grad.ndim - 1], k = out.sizes[out.ndim - 1];
  const Blocks w = check_blocks(values, crow, col, n, k);
  const ByColumn by(w);
  const BlockKernels& kernels = block_kernels();
  const TileKernels& tiles = tile_kernels();
  for_each_rows(m, w.work(m), [&](int64_t first, int64_t rows, int64_t part, int64_t parts) {
    const float* panels = packed_rows(kPanelSlot, grad, first, rows, 0, n, w.size);
    const int64_t padded = padded_rows(rows), pass = w.per_pass(), area = w.size * w.size;
    float *dx = floats(kSumSlot, padded * w.size), *transposed = floats(kBlockSlot, pass * area);
    if (!panels || !dx || !transposed) return false;
    const int64_t begin = Blocks::cut(by.ends.data(), w.block_columns, part, parts);
    const int64_t end = Blocks::cut(by.ends.data(), w.block_columns, part + 1, parts);
    for (int64_t c = begin; c < end; ++c) {
      int64_t i = by.ends[c];
      do {
        const int64_t count = std::min<int64_t>(pass, by.ends[c + 1] - i);
        for (int64_t j = 0; j < count; ++j) {
          if (i + j + 1 < w.count) prefetch(w.block(by.order[i + j + 1]), area * element_size(w.dtype));
          tiles.pack(w.block(by.order[i + j]), w.dtype, w.size, w.size, w.size, w.size, transposed + j * area);
        }
        kernels.multiply(panels, padded, transposed, DType::f32, w.size, by.row.data() + i, count, i > by.ends[c], dx);
        i += count;
      } while (i < by.ends[c + 1]);
      unpack_rows(dx, first, rows, c, w.size, nullptr, out);
    }
    return true;
  });
}

namespace {

// What a block holds beyond N and K stays 0 in training, whatever the activations are.
void zero_outside(const Blocks& w, int64_t row, int64_t column, float* dblock) {
  const int64_t inputs = std::min(w.size, w.k - column * w.size), outputs = std::min(w.size, w.n - row * w.size);
  for (int64_t k = 0; k < w.size; ++k)
    std::fill(dblock + k * w.size + (k < inputs ? outputs : 0), dblock + (k + 1) * w.size, 0.0f);
}

// The blocks of rows [begin, end) over all of M.
bool grad_values_of(const Blocks& w, const View& grad, const View& x, int64_t m, int64_t begin, int64_t end,
                    float* dvalues) {
  const int64_t area = w.size * w.size;
  for (int64_t first = 0; first < m; first += kRowsAtOnce) {
    const int64_t rows = std::min(kRowsAtOnce, m - first), padded = padded_rows(rows), panel = padded * w.size;
    const float* from = packed_rows(kPanelSlot, x, first, rows, 0, w.k, w.size);
    const float* g = packed_rows(kBlockSlot, grad, first, rows, begin * w.size, std::min(w.n, end * w.size), w.size);
    if (!from || !g) return false;
    for (int64_t r = begin; r < end; ++r)
      for (int64_t i = w.crow[r]; i < w.crow[r + 1]; ++i)
        block_kernels().grad_values(from + w.col[i] * panel, g + (r - begin) * panel, padded, w.size, first > 0,
                                    dvalues + i * area);
  }
  for (int64_t r = begin; r < end; ++r)
    for (int64_t i = w.crow[r]; i < w.crow[r + 1]; ++i)
      if ((r + 1) * w.size > w.n || (w.col[i] + 1) * w.size > w.k) zero_outside(w, r, w.col[i], dvalues + i * area);
  return true;
}

}  // namespace

void block_sparse_linear_grad_values(const View& grad, const View& x, const View& crow, const View& col,
                                     const View& out) {
  const int64_t m = check_gradient(grad, x, out);
  const int64_t n = grad.sizes[grad.ndim - 1], k = x.sizes[x.ndim - 1];
  const Blocks w = check_blocks(out, crow, col, n, k);
  fill_grad_values(out, m, w.work(m), [&](int64_t first, int64_t last, int64_t parts, float* dvalues) {
    const int64_t begin = w.part_begin(first, parts), end = w.part_begin(last, parts);
    return begin == end || grad_values_of(w, grad, x, m, begin, end, dvalues);
  });
}

}  // namespace bigmodel
