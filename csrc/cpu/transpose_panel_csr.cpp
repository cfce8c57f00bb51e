#include "transpose_panel_csr.h"

#include <algorithm>
#include <atomic>
#include <memory>

#include "../common/check.h"
#include "../common/pages.h"
#include "panel_csr.h"
#include "segment_order.h"

namespace bigmodel {
namespace {

constexpr int64_t kGrainEntries = 16384;  // below this, waking a second thread costs more than it saves

struct Transpose {
  PanelCsr w;
  int64_t panel_t, panels_t;
  int32_t* segment_of;  // [panels * N]: where each row's segment is, in the rows' own order
  int32_t* cursor;      // [panels_t * K]: of each segment of the transpose

  int64_t columns(int64_t p) const { return std::min(w.panel, w.k - p * w.panel); }

  // Writes panel p of segment_of; false if its order does not name each row once.
  bool invert_order(int64_t p) const {
    int32_t* found = segment_of + p * w.n;
    std::fill(found, found + w.n, -1);
    for (int64_t i = 0; i < w.n; ++i) {
      const int64_t at = i % order_rows(w.n), first = i - at;
      const int64_t row = w.order_step ? w.order[p * w.order_stride + i] : at;
      if (row < 0 || row >= std::min(order_rows(w.n), w.n - first) || found[first + row] >= 0) return false;
      found[first + row] = static_cast<int32_t>(p * w.n + i);
    }
    return true;
  }

  // Counts in `counts` [panels_t * K] the entries of panel p; false if a column is beyond it.
  bool count(int64_t p, int32_t* counts) const {
    uint8_t largest = 0;
    for (int64_t row = 0; row < w.n; ++row) {
      const int64_t segment = segment_of[p * w.n + row];
      int32_t* to = counts + row / panel_t * w.k + p * w.panel;
      for (int64_t i = w.crow[segment]; i < w.crow[segment + 1]; ++i) {
        largest = std::max(largest, w.col[i]);
        if (w.col[i] < columns(p)) ++to[w.col[i]];
      }
    }
    return w.crow[p * w.n] == w.crow[(p + 1) * w.n] || largest < columns(p);
  }

  // Puts the entries of panel p that are in the transpose's panel q where the cursors of their segments are. Rows go in
  // their own order, as the transpose's columns do.
  bool place(int64_t p, int64_t q, uint8_t* col_t, int32_t* source) const {
    int32_t* at = cursor + q * w.k + p * w.panel;
    const int64_t first = q * panel_t, rows = std::min(panel_t, w.n - first), width = columns(p);
    bool valid = true;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t segment = segment_of[p * w.n + first + row];
      for (int64_t i = w.crow[segment]; i < w.crow[segment + 1]; ++i) {
        const int64_t column = w.col[i];
        if (column >= width || at[column] >= w.nnz) {  // changed since it was counted
          valid = false;
          continue;
        }
        const int32_t to = at[column]++;
        col_t[to] = static_cast<uint8_t>(row);
        source[to] = static_cast<int32_t>(i);
      }
    }
    return valid;
  }
};

template <typename Body>
void for_each(int64_t count, int64_t entries, Body&& body) {
  std::atomic<bool> valid{true};
  parallel_for(count, kGrainEntries * count / std::max<int64_t>(entries, 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      if (!body(i)) valid = false;
  });
  BIGMODEL_CHECK(valid, "col or order names a column or row that W does not have, or a row twice");
}

// Where each row's segment begins, in the rows' own order.
void begin_cursors(const PanelCsr& t, int32_t* cursor) {
  const int64_t block = order_rows(t.n);
  for (int64_t i = 0; i < t.panels * t.n; ++i) cursor[i - i % t.n % block + t.order[i]] = t.crow[i];
}

}  // namespace

void transpose_panel_csr(const View& crow, const View& col, const View* order, int64_t n, int64_t k, int64_t panel,
                         const View& crow_t, const View& col_t, const View& order_t, const View& source,
                         int64_t panel_t) {
  check_ndim(col, "col", 1);
  const int64_t nnz = col.sizes[0];
  const PanelCsr w = check_panel_csr(crow, col, order, nnz, n, k, panel);
  BIGMODEL_CHECK(panel_t >= 1 && panel_t <= kPanelColumns, "panel_t must be in [1, 256], got ", panel_t);
  const int64_t panels = (n + panel_t - 1) / panel_t, segments = panels * k;
  check_dtype(crow_t, "crow_t", DType::i32);
  check_shape(crow_t, "crow_t", {segments + 1});
  check_dtype(col_t, "col_t", DType::u8);
  check_shape(col_t, "col_t", {nnz});
  check_dtype(order_t, "order_t", DType::i32);
  check_shape(order_t, "order_t", {segments});
  check_dtype(source, "source", DType::i32);
  check_shape(source, "source", {nnz});
  for (const View* v : {&crow_t, &col_t, &order_t, &source}) check_contiguous(*v, "the transpose's tensors");

  about_to_write(source.data, static_cast<size_t>(nnz) * 4);
  const std::unique_ptr<int32_t[]> segment_of(new int32_t[static_cast<size_t>(w.panels * n)]);
  const std::unique_ptr<int32_t[]> cursor(new int32_t[static_cast<size_t>(segments)]);
  const Transpose to = {w, panel_t, panels, segment_of.get(), cursor.get()};
  int32_t* counts = crow_t.as<int32_t>() + 1;
  std::fill(counts, counts + segments, 0);
  for_each(w.panels, nnz, [&](int64_t p) { return to.invert_order(p) && to.count(p, counts); });
  for (int64_t i = 0; i < segments; ++i) BIGMODEL_CHECK(counts[i] <= panel_t, "col names a column twice in one row");
  order_segments(panels, k, crow_t.as<int32_t>(), order_t.as<int32_t>());
  begin_cursors(check_panel_csr(crow_t, col_t, &order_t, nnz, k, n, panel_t), cursor.get());
  // As many panels of W at a time as share blocks of the transpose's rows: what is written together lies together.
  const int64_t together = std::max<int64_t>(order_rows(k) / panel, 1), groups = (w.panels + together - 1) / together;
  for_each(groups * panels, nnz, [&](int64_t i) {
    bool valid = true;
    for (int64_t p = i / panels * together; p < std::min(w.panels, (i / panels + 1) * together); ++p)
      valid &= to.place(p, i % panels, col_t.as<uint8_t>(), source.as<int32_t>());
    return valid;
  });
}

namespace {

template <typename T>
void permute(const View& values, const View& source, const View& out) {
  const T* from = values.as<T>();
  const int32_t* index = source.as<int32_t>();
  T* to = out.as<T>();
  parallel_for(out.sizes[0], kGrainEntries, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) to[i] = from[index[i]];
  });
}

}  // namespace

void permute_values(const View& values, const View& source, const View& out) {
  check_dtype(source, "source", DType::i32);
  check_ndim(source, "source", 1);
  check_dtype(out, "out", values.dtype);
  for (const View* v : {&values, &out}) check_shape(*v, "values", {source.sizes[0]});
  for (const View* v : {&values, &source, &out}) check_contiguous(*v, "values");
  const bool words = values.dtype == DType::f32 || values.dtype == DType::i32;
  about_to_write(out.data, static_cast<size_t>(out.sizes[0]) * (words ? 4 : 2));
  if (words) return permute<uint32_t>(values, source, out);
  check_float(values, "values");
  permute<uint16_t>(values, source, out);
}

}  // namespace bigmodel
