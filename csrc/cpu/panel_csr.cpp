#include "panel_csr.h"

#include "../common/check.h"
#include "../common/half.h"

namespace bigmodel {
namespace {

void check_vector(const View& v, const char* name, int64_t size) {
  BIGMODEL_CHECK(v.ndim == 1 && v.sizes[0] == size, name, " must have shape [", size, "], got ", shape_string(v));
  check_contiguous(v, name);
}

void check_crow(const int32_t* crow, int64_t segments, int64_t nnz) {
  BIGMODEL_CHECK(crow[0] == 0, "crow must begin with 0, got ", crow[0]);
  BIGMODEL_CHECK(crow[segments] == nnz, "crow must end with the number of values, ", nnz, ", got ", crow[segments]);
  const auto falls = [&](int64_t i) { return crow[i + 1] < crow[i]; };
  const auto too_long = [&](int64_t i) {  // unsigned: what falls may overflow
    return static_cast<uint32_t>(crow[i + 1]) - static_cast<uint32_t>(crow[i]) > uint32_t{kPanelColumns};
  };
  int32_t wrong = 0;
  for (int64_t i = 0; i < segments; ++i) wrong |= falls(i) | too_long(i);
  for (int64_t i = 0; wrong && i < segments; ++i)
    BIGMODEL_CHECK(!falls(i), "crow must not decrease, got ", crow[i], " and then ", crow[i + 1], " at index ", i + 1);
  for (int64_t i = 0; wrong && i < segments; ++i)
    BIGMODEL_CHECK(!too_long(i), "a row has at most ", kPanelColumns, " entries in a panel, crow has ", crow[i],
                   " and then ", crow[i + 1], " at index ", i + 1);
}

// The order of a block whose rows are stored in theirs.
struct InOrder {
  int32_t row[kBlockRows];
  InOrder() {
    for (int64_t r = 0; r < kBlockRows; ++r) row[r] = static_cast<int32_t>(r);
  }
};
const InOrder in_order;

}  // namespace

PanelCsr check_panel_csr(const View& crow, const View& col, const View* order, int64_t nnz, int64_t n, int64_t k,
                         int64_t panel) {
  check_dtype(crow, "crow", DType::i32);
  check_dtype(col, "col", DType::u8);
  BIGMODEL_CHECK(panel >= 1 && panel <= kPanelColumns, "panel must be in [1, 256], got ", panel);
  const int64_t panels = k / panel + (k % panel != 0);
  int64_t segments;
  BIGMODEL_CHECK(!__builtin_mul_overflow(panels, n, &segments) && segments < INT64_MAX, "crow cannot have ", panels,
                 " panels times ", n, " rows");
  check_vector(crow, "crow", segments + 1);
  check_vector(col, "col", nnz);
  check_crow(crow.as<int32_t>(), segments, nnz);
  if (!order)
    return {col.as<uint8_t>(), crow.as<int32_t>(), in_order.row, 0, 0, n, k, panel, panels, nnz,
            kTileLanes,        kBlockRows};
  check_dtype(*order, "order", DType::i32);
  check_vector(*order, "order", segments);
  const int64_t rows = order_rows(n);
  return {col.as<uint8_t>(), crow.as<int32_t>(), order->as<int32_t>(), n, 1, n, k, panel, panels, nnz, rows, rows};
}

int64_t check_features(const View& features, const char* name) {
  BIGMODEL_CHECK(features.ndim >= 1, name, " must have at least 1 dimension, got shape ", shape_string(features));
  check_contiguous(features, name);
  int64_t m = 1;
  for (int d = 0; d + 1 < features.ndim; ++d) m *= features.sizes[d];
  return m;
}

void check_out(const View& x, const View& out) {
  check_dtype(out, "out", x.dtype);
  check_ndim(out, "out", x.ndim);
  for (int d = 0; d + 1 < x.ndim; ++d) check_size(out, "out", d, x.sizes[d]);
  check_contiguous(out, "out");
}

void check_bias(const View* bias, int64_t n) {
  if (!bias) return;
  if (bias->dtype != DType::f64) check_float(*bias, "bias");
  check_vector(*bias, "bias", n);
}

const float* bias_as_float(const View* bias, float* buffer) {
  if (!bias || bias->dtype == DType::f32) return bias ? bias->as<float>() : nullptr;
  for (int64_t i = 0; i < bias->sizes[0]; ++i) {
    if (bias->dtype == DType::f64) {
      buffer[i] = static_cast<float>(bias->as<double>()[i]);
    } else {
      const uint16_t h = bias->as<uint16_t>()[i];
      buffer[i] = bias->dtype == DType::bf16 ? bf16_to_float(h) : f16_to_float(h);
    }
  }
  return buffer;
}

}  // namespace bigmodel
