#include "pack_panel_csr.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "../common/check.h"
#include "../common/pages.h"
#include "isa.h"
#include "panel_csr.h"
#include "segment_order.h"

namespace bigmodel {
namespace {

#if defined(__x86_64__)
constexpr Variants<const PackKernels*> variants = {{&pack_kernels_scalar, nullptr, &pack_kernels_avx512, nullptr}};
#else
constexpr Variants<const PackKernels*> variants = {{&pack_kernels_scalar, nullptr, nullptr, nullptr}};
#endif
const KernelLevel level_of_pack_panel_csr("pack_panel_csr", [] { return variants.level(); });

constexpr int64_t kGrainWeights = 65536;  // below this, waking a second thread costs more than it saves

struct Dense {
  const PackKernels& kernels;
  const char* weight;
  const uint8_t* mask;
  DType dtype;
  int64_t n, k, panel, panels, bytes;

  const char* at(int64_t row, int64_t p) const { return weight + (row * k + p * panel) * bytes; }
  const uint8_t* mask_at(int64_t row, int64_t p) const { return mask ? mask + row * k + p * panel : nullptr; }
  int64_t columns(int64_t p) const { return std::min(panel, k - p * panel); }
};

Dense check_dense(const View& weight, const View* mask, int64_t panel) {
  check_ndim(weight, "weight", 2);
  check_contiguous(weight, "weight");
  if (!is_float(weight.dtype) && weight.dtype != DType::f64 && weight.dtype != DType::i32)
    throw TypeError(message("weight must be floating point or int32, got ", dtype_name(weight.dtype)));
  BIGMODEL_CHECK(panel >= 1 && panel <= kPanelColumns, "panel must be in [1, 256], got ", panel);
  const int64_t n = weight.sizes[0], k = weight.sizes[1];
  if (mask) {
    check_dtype(*mask, "mask", DType::u8);
    check_shape(*mask, "mask", {n, k});
    check_contiguous(*mask, "mask");
  }
  const int64_t bytes = weight.dtype == DType::i32 ? 4 : element_size(weight.dtype);
  return {weight.dtype == DType::f64 ? pack_kernels_scalar : *variants.pick(),
          weight.as<char>(),
          mask ? mask->as<uint8_t>() : nullptr,
          weight.dtype,
          n,
          k,
          panel,
          (k + panel - 1) / panel,
          bytes};
}

// The entries of one block of rows of one panel, in the order in which they are stored. False if they are not those
// that were counted.
bool fill_block(const Dense& w, const PanelCsr& to, int64_t p, int64_t first, char* values, uint8_t* col) {
  const int64_t rows = std::min(order_rows(w.n), w.n - first), columns = w.columns(p);
  const int32_t* crow = to.crow + p * w.n + first;
  const int32_t* order = to.order + p * to.order_stride + first * to.order_step;
  alignas(64) char value_buffer[kPanelColumns * 8];
  uint8_t col_buffer[kPanelColumns];
  const int64_t room = (columns + 15) / 16 * 16;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t row = to.order_step ? order[i] : i, at = crow[i], stored = crow[i + 1] - at;
    if (row < 0 || row >= w.n - first) return false;
    const bool direct = at + room <= crow[rows];  // what comes behind is written after it
    char* v = direct ? values + at * w.bytes : value_buffer;
    uint8_t* c = direct ? col + at : col_buffer;
    if (w.kernels.fill(w.at(first + row, p), w.dtype, w.mask_at(first + row, p), columns, v, c) != stored) return false;
    if (direct || stored == 0) continue;
    std::memcpy(values + at * w.bytes, value_buffer, static_cast<size_t>(stored * w.bytes));
    std::memcpy(col + at, col_buffer, static_cast<size_t>(stored));
  }
  return true;
}

}  // namespace

int64_t count_panel_csr(const View& weight, const View* mask, int64_t panel, const View& crow, const View* order) {
  const Dense w = check_dense(weight, mask, panel);
  int64_t segments;
  BIGMODEL_CHECK(!__builtin_mul_overflow(w.panels, w.n, &segments) && segments < INT64_MAX, "there cannot be ",
                 w.panels, " panels times ", w.n, " rows");
  check_dtype(crow, "crow", DType::i32);
  check_shape(crow, "crow", {segments + 1});
  check_contiguous(crow, "crow");
  if (order) {
    check_dtype(*order, "order", DType::i32);
    check_shape(*order, "order", {segments});
    check_contiguous(*order, "order");
  }
  int32_t* counts = crow.as<int32_t>() + 1;
  parallel_for(w.n, kGrainWeights / std::max<int64_t>(w.k, 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t p = 0; p < w.panels; ++p)
        counts[p * w.n + row] =
            static_cast<int32_t>(w.kernels.count(w.at(row, p), w.dtype, w.mask_at(row, p), w.columns(p)));
  });
  return order_segments(w.panels, w.n, crow.as<int32_t>(), order ? order->as<int32_t>() : nullptr);
}

void fill_panel_csr(const View& weight, const View* mask, int64_t panel, const View& crow, const View* order,
                    const View& values, const View& col) {
  const Dense w = check_dense(weight, mask, panel);
  check_dtype(values, "values", weight.dtype);
  check_ndim(values, "values", 1);
  check_contiguous(values, "values");
  const PanelCsr to = check_panel_csr(crow, col, order, values.sizes[0], w.n, w.k, panel);
  about_to_write(values.data, static_cast<size_t>(to.nnz * w.bytes));
  about_to_write(col.data, static_cast<size_t>(to.nnz));
  const int64_t block = order_rows(w.n), blocks = (w.n + block - 1) / block;
  std::atomic<bool> same{true};
  // A block's panels one after the other: eight of them share a page of memory.
  parallel_for(blocks * w.panels, kGrainWeights / (block * panel) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      if (!fill_block(w, to, i % w.panels, i / w.panels * block, values.as<char>(), col.as<uint8_t>())) same = false;
  });
  if (!same) throw std::runtime_error("weight or mask changed while it was being packed");
}

}  // namespace bigmodel
