#include "sparse_linear.h"

#include <algorithm>
#include <climits>
#include <cstring>

#include "../common/check.h"
#include "../common/dropout.h"
#include "sparse_args.h"

namespace bigmodel {
namespace {

cudaStream_t as_stream(void* stream) { return static_cast<cudaStream_t>(stream); }

struct Matrix {
  int64_t rows, columns, stride;
};

// A matrix whose rows are contiguous and aligned.
Matrix check_matrix(const View& v, const char* name, int64_t alignment) {
  check_ndim(v, name, 2);
  const Matrix m{v.sizes[0], v.sizes[1], v.sizes[0] > 1 ? v.strides[0] : v.sizes[1]};
  BIGMODEL_CHECK(m.columns <= 1 || v.strides[1] == 1, name, " must have contiguous rows");
  const int64_t size = v.dtype == DType::i32 ? 4 : element_size(v.dtype);
  const bool aligned = reinterpret_cast<uintptr_t>(v.data) % alignment == 0 && m.stride * size % alignment == 0;
  BIGMODEL_CHECK(m.rows <= 1 ? reinterpret_cast<uintptr_t>(v.data) % alignment == 0 : aligned, name,
                 " must have rows aligned to ", alignment, " bytes");
  return m;
}

int as_int(int64_t size, const char* name) {
  BIGMODEL_CHECK(size <= INT_MAX / 2, name, " must be at most ", INT_MAX / 2, ", got ", size);
  return static_cast<int>(size);
}

LinearEpilogue check_epilogue(const SparseEpilogue& e, const View& out, int64_t m, int64_t n) {
  check_float(out, "out");
  check_shape(out, "out", {m, n});
  check_contiguous(out, "out");
  LinearEpilogue r{};
  if (e.bias) {
    check_float(*e.bias, "bias");
    check_shape(*e.bias, "bias", {n});
    check_contiguous(*e.bias, "bias");
    r.bias = e.bias->data;
    r.bias_dtype = e.bias->dtype;
  }
  if (e.scale) {
    check_dtype(*e.scale, "scale", DType::f32);
    check_shape(*e.scale, "scale", {m});
    check_dtype(*e.weight_scale, "weight_scale", DType::f32);
    check_shape(*e.weight_scale, "weight_scale", {n});
    check_contiguous(*e.weight_scale, "weight_scale");
    r.scale = e.scale->as<float>();
    r.weight_scale = e.weight_scale->as<float>();
  }
  r.activation = parse_activation(e.activation);
  r.dtype = out.dtype;
  r.out = out.data;
  r.n = n;
  return r;
}

SparseBits check_masks(const SparseMasks& w) {
  check_ndim(w.masks, "masks", 3);
  const int64_t n = w.masks.sizes[0], units = (w.k + kUnit - 1) / kUnit;
  check_dtype(w.masks, "masks", DType::i32);
  check_shape(w.masks, "masks", {n, units, kUnitWords});
  check_contiguous(w.masks, "masks");
  check_dtype(w.units, "units", DType::i32);
  check_shape(w.units, "units", {n, units, 2});
  check_contiguous(w.units, "units");
  return {w.masks.as<uint4>(), w.units.as<uint2>(), as_int(n, "N"), as_int(w.k, "K"), static_cast<int>(units)};
}

BitsArgs bits_args(const View& x, const Matrix& matrix, const View* values, const SparseBits& bits) {
  BitsArgs a{};
  static_cast<SparseBits&>(a) = bits;
  a.x = x.data;
  a.m = matrix.rows;
  a.x_stride = matrix.stride;
  if (!values) return a;
  check_dtype(*values, "values", x.dtype);
  check_ndim(*values, "values", 1);
  check_contiguous(*values, "values");
  const auto address = reinterpret_cast<uintptr_t>(values->data);
  a.skip = static_cast<uint32_t>(address % 16 / (x.dtype == DType::i32 ? 4 : 2));
  a.values = reinterpret_cast<const void*>(address / 16 * 16);
  a.stored = values->sizes[0] + a.skip;
  return a;
}

void check_half(const View& v, const char* name) {
  check_float(v, name);
  if (v.dtype == DType::f32) throw TypeError(message(name, " must be bfloat16 or float16, got float32"));
}

}  // namespace

void sparse_rows_cuda(const View& x, const View& values, const View& col, const View& runs, int64_t panel,
                      const SparseEpilogue& epilogue, const View& out, void* stream) {
  const Matrix matrix = check_matrix(x, "x", 1);
  check_ndim(runs, "runs", 3);
  const int64_t n = runs.sizes[0], panels = (matrix.columns + panel - 1) / panel;
  check_dtype(runs, "runs", DType::i32);
  check_shape(runs, "runs", {n, panels, 2});
  check_dtype(col, "col", DType::u8);
  check_contiguous(col, "col");
  check_ndim(values, "values", 1);
  check_contiguous(values, "values");
  check_size(values, "values", 0, col.sizes[0]);
  const LinearEpilogue e = check_epilogue(epilogue, out, matrix.rows, n);
  if (matrix.rows == 0 || n == 0) return;
  RowsArgs a{
      x.data,        values.data,    col.as<uint8_t>(),           runs.as<int2>(),        matrix.rows,
      matrix.stride, as_int(n, "N"), as_int(matrix.columns, "K"), as_int(panel, "panel"), as_int(panels, "panels")};
  const DeviceGuard guard(x.device);
  const bool same = values.dtype == x.dtype;
  if (!same) check_dtype(values, "values", DType::f32);
  if (x.dtype == DType::i32 && same) return launch_sparse_rows<DType::i32, true>(a, e, as_stream(stream));
  check_float(x, "x");
  if (x.dtype == DType::f32) return launch_sparse_rows<DType::f32, true>(a, e, as_stream(stream));
  if (x.dtype == DType::bf16)
    return same ? launch_sparse_rows<DType::bf16, true>(a, e, as_stream(stream))
                : launch_sparse_rows<DType::bf16, false>(a, e, as_stream(stream));
  same ? launch_sparse_rows<DType::f16, true>(a, e, as_stream(stream))
       : launch_sparse_rows<DType::f16, false>(a, e, as_stream(stream));
}

void sparse_bits_cuda(const View& x, const View& values, const SparseMasks& w, const SparseEpilogue& epilogue,
                      const View& out, void* stream) {
  check_half(x, "x");
  const Matrix matrix = check_matrix(x, "x", 8);
  const SparseBits bits = check_masks(w);
  check_size(x, "x", 1, w.k);
  BIGMODEL_CHECK(matrix.rows <= kFewRows, "x must have at most ", kFewRows, " rows, got ", matrix.rows);
  const LinearEpilogue e = check_epilogue(epilogue, out, matrix.rows, bits.n);
  const BitsArgs a = bits_args(x, matrix, &values, bits);
  if (matrix.rows == 0 || bits.n == 0) return;
  const DeviceGuard guard(x.device);
  x.dtype == DType::bf16 ? launch_sparse_bits<DType::bf16>(a, e, as_stream(stream))
                         : launch_sparse_bits<DType::f16>(a, e, as_stream(stream));
}

void sparse_tiles_cuda(SparseProduct product, const View& a, const View* b, const View* values, const SparseMasks& w,
                       const SparseEpilogue& epilogue, const View& out, void* stream) {
  check_half(a, "a");
  const Matrix matrix = check_matrix(a, "a", 16);
  const SparseBits bits = check_masks(w);
  const bool forward = product == SparseProduct::forward;
  check_size(a, "a", 1, forward ? w.k : bits.n);
  TilesArgs t{bits_args(a, matrix, values, bits), nullptr, 0};
  LinearEpilogue e{};
  if (product == SparseProduct::grad_values) {
    check_dtype(*b, "b", a.dtype);
    const Matrix second = check_matrix(*b, "b", 16);
    check_shape(*b, "b", {matrix.rows, w.k});
    t.b = b->data;
    t.b_stride = second.stride;
    check_dtype(out, "out", a.dtype);
    check_ndim(out, "out", 1);
    check_contiguous(out, "out");
    e.dtype = out.dtype;
    e.out = out.data;
  } else {
    e = check_epilogue(epilogue, out, matrix.rows, forward ? bits.n : w.k);
  }
  if (out.numel() == 0) return;
  const DeviceGuard guard(a.device);
  a.dtype == DType::bf16 ? launch_sparse_tiles<DType::bf16>(product, t, e, as_stream(stream))
                         : launch_sparse_tiles<DType::f16>(product, t, e, as_stream(stream));
}

void sparse_int8_tiles_cuda(const View& x, const View& values, const SparseMasks& w, const SparseEpilogue& epilogue,
                            const View& out, void* stream) {
  check_dtype(x, "x", DType::i32);
  const Matrix matrix = check_matrix(x, "x", 16);
  const SparseBits bits = check_masks(w);
  check_size(x, "x", 1, w.k);
  const LinearEpilogue e = check_epilogue(epilogue, out, matrix.rows, bits.n);
  const BitsArgs a = bits_args(x, matrix, &values, bits);
  if (matrix.rows == 0 || bits.n == 0) return;
  const DeviceGuard guard(x.device);
  launch_sparse_int8_tiles(a, e, as_stream(stream));
}

void sparse_dense_cuda(const View& values, const SparseMasks& w, const View& dense, bool spread, void* stream) {
  const SparseBits bits = check_masks(w);
  check_dtype(dense, "dense", values.dtype);
  check_shape(dense, "dense", {bits.n, w.k});
  check_contiguous(dense, "dense");
  BIGMODEL_CHECK(reinterpret_cast<uintptr_t>(dense.data) % 16 == 0, "dense must be aligned to 16 bytes");
  check_ndim(values, "values", 1);
  check_contiguous(values, "values");
  if (values.dtype != DType::i32) check_float(values, "values");
  const int bytes = values.dtype == DType::f32 || values.dtype == DType::i32 ? 4 : 2;
  const DeviceGuard guard(values.device);
  launch_sparse_dense(bits, values.data, dense.data, bytes, spread, as_stream(stream));
}

}  // namespace bigmodel
