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
  int64_t panel_t;
  int32_t* cursor;  // [ceil(N / panel_t) * K]: of each segment of the transpose

  // Calls body(cursor of (row's panel, panel's first column), segment) for the rows of a panel, in their order or in that
  // in which they are stored. False if a row is not one of the matrix's.
  template <bool InTheirOrder, typename Body>
  bool for_each_row(int64_t p, Body&& body) const {
    int32_t place[kBlockRows];
    for (int64_t first = 0; first < w.n; first += order_rows(w.n)) {
      const int64_t rows = std::min(order_rows(w.n), w.n - first);
      const int32_t* order = w.order + p * w.order_stride + first * w.order_step;
      if (InTheirOrder) std::fill(place, place + rows, -1);
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t row = w.order_step ? order[i] : i;
        if (row < 0 || row >= rows) return false;
        if (InTheirOrder)
          place[row] = static_cast<int32_t>(i);
        else
          body(first + row, p * w.n + first + i);
      }
      for (int64_t row = 0; InTheirOrder && row < rows; ++row) {
        if (place[row] < 0) return false;
        body(first + row, p * w.n + first + place[row]);
      }
    }
    return true;
  }

  int32_t* cursors(int64_t row, int64_t p) const { return cursor + row / panel_t * w.k + p * w.panel; }

  // Counts each segment of the transpose whose row is in panel p.
  bool count(int64_t p) const {
    const int64_t columns = std::min(w.panel, w.k - p * w.panel);
    bool valid = true;
    return for_each_row<false>(p,
                               [&](int64_t row, int64_t segment) {
                                 int32_t* counts = cursors(row, p);
                                 for (int64_t i = w.crow[segment]; i < w.crow[segment + 1]; ++i) {
                                   if (w.col[i] < columns)
                                     ++counts[w.col[i]];
                                   else
                                     valid = false;
                                 }
                               }) &&
           valid;
  }

  // Puts each entry of panel p where the cursor of its segment is. Rows in their order: so the transpose's columns are.
  bool place(int64_t p, uint8_t* col_t, int32_t* source) const {
    const int64_t columns = std::min(w.panel, w.k - p * w.panel);
    bool valid = true;
    return for_each_row<true>(p,
                              [&](int64_t row, int64_t segment) {
                                int32_t* at = cursors(row, p);
                                const uint8_t column = static_cast<uint8_t>(row % panel_t);
                                for (int64_t i = w.crow[segment]; i < w.crow[segment + 1]; ++i) {
                                  if (w.col[i] >= columns || at[w.col[i]] >= w.nnz) {
                                    valid = false;
                                    continue;
                                  }
                                  const int32_t to = at[w.col[i]]++;
                                  col_t[to] = column;
                                  source[to] = static_cast<int32_t>(i);
                                }
                              }) &&
           valid;
  }
};

template <typename Body>
void for_each_panel(const PanelCsr& w, Body&& body) {
  std::atomic<bool> valid{true};
  const int64_t entries = w.panels ? w.nnz / w.panels : 0;
  parallel_for(w.panels, kGrainEntries / std::max<int64_t>(entries, 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      if (!body(p)) valid = false;
  });
  BIGMODEL_CHECK(valid, "col or order names a column or row that W [", w.n, ",", w.k, "] does not have, or one twice");
}

// Where each row's segment begins, in the rows' own order.
void begin_cursors(const PanelCsr& t, int32_t* cursor) {
  const int64_t block = order_rows(t.n);
  parallel_for(t.panels, kGrainEntries / std::max<int64_t>(t.n, 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * t.n; i < end * t.n; ++i) {
      const int64_t row = i % t.n;
      cursor[i - row % block + t.order[i]] = t.crow[i];
    }
  });
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
  const std::unique_ptr<int32_t[]> cursor(new int32_t[static_cast<size_t>(segments)]);
  int32_t* counts = crow_t.as<int32_t>() + 1;
  std::fill(counts, counts + segments, 0);
  for_each_panel(w, [&](int64_t p) { return Transpose{w, panel_t, counts}.count(p); });
  for (int64_t i = 0; i < segments; ++i)
    BIGMODEL_CHECK(counts[i] <= panel_t, "col names a column twice in one row");
  order_segments(panels, k, crow_t.as<int32_t>(), order_t.as<int32_t>());
  begin_cursors(check_panel_csr(crow_t, col_t, &order_t, nnz, k, n, panel_t), cursor.get());
  const Transpose to = {w, panel_t, cursor.get()};
  for_each_panel(w, [&](int64_t p) { return to.place(p, col_t.as<uint8_t>(), source.as<int32_t>()); });
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
  about_to_write(out.data, static_cast<size_t>(out.sizes[0]) * 4);
  if (values.dtype == DType::f32 || values.dtype == DType::i32) return permute<uint32_t>(values, source, out);
  check_float(values, "values");
  permute<uint16_t>(values, source, out);
}

}  // namespace bigmodel
