#include "int8_semi_sparse_linear.h"

#include "../common/dropout.h"
#include "int8_launch.h"
#include "semi_sparse_launch.h"
#include "sparse_checks.h"

namespace bigmodel {

namespace {

constexpr int64_t kSemi = 32, kMostRows = (int64_t{1} << 31) - 1024;

bool aligned(const View& v, int64_t row_bytes) {
  return reinterpret_cast<uintptr_t>(v.data) % 16 == 0 && row_bytes % 16 == 0;
}

}  // namespace

void int8_semi_sparse_linear_cuda(const View& x, const View& values, const View& index, const View& weight_scale,
                                  const View* bias, const View& out, const char* activation, const View& q,
                                  const View& scale, SemiShape shape, void* stream) {
  check_float(x, "x");
  check_ndim(x, "x", 2);
  check_contiguous(x, "x");
  check_ndim(weight_scale, "weight_scale", 1);
  const int64_t m = x.sizes[0], k = x.sizes[1], n = weight_scale.sizes[0], stride = pieces_of(k, 16) * 16;
  BIGMODEL_CHECK(m <= kMostRows && n <= kMostRows, "M and N must be at most ", kMostRows, ", got ", m, " and ", n);
  const int64_t rows = pieces_of(n, kSemi), columns = pieces_of(k, kSemi);
  check_whole(values, "values", DType::i8, {rows, columns, kSemi, kSemi / 2});
  check_whole(index, "index", DType::u8, {rows, columns, kSemi, 4});
  check_dtype(weight_scale, "weight_scale", DType::f32);
  check_contiguous(weight_scale, "weight_scale");
  check_whole(out, "out", x.dtype, {m, n});
  check_whole(q, "q", DType::i8, {m, stride});
  check_whole(scale, "scale", DType::f32, {m});
  if (bias) {
    check_float(*bias, "bias");
    check_shape(*bias, "bias", {n});
    check_contiguous(*bias, "bias");
  }
  const Activation act = parse_activation(activation);
  if (m == 0 || n == 0) return;
  const DeviceGuard guard(x.device);
  const auto on = static_cast<cudaStream_t>(stream);
  const RowsToQuantize from = {x.data, x.dtype, m, static_cast<int>(k), nullptr, aligned(x, k * element_size(x.dtype))};
  launch_quantize_rows(from, {q.as<int8_t>(), stride, scale.as<float>()}, on);
  SemiArgs args{};
  args.x = q.data;
  args.values = values.data;
  args.index = index.as<uint8_t>();
  args.m = m;
  args.n = n;
  args.k = stride;
  args.tile_rows = rows;
  args.tile_columns = columns;
  Int8Result result = {out.data, out.dtype};
  result.x_scale = scale.as<float>();
  result.weight_scale = weight_scale.as<float>();
  result.bias = bias ? bias->data : nullptr;
  result.bias_dtype = bias ? bias->dtype : DType::f32;
  result.activation = act;
  result.vectors = n % 4 == 0;
  launch_int8_semi_sparse_linear(args, result, shape, x.device, on);
}

}  // namespace bigmodel
