#include "semi_sparse_linear.h"

#include "../common/check.h"
#include "semi_sparse_launch.h"

namespace bigmodel {

namespace {

constexpr int64_t kSemi = 32;

int64_t tiles(int64_t size) { return (size + kSemi - 1) / kSemi; }

void check_rows(const View& v, const char* name) {
  check_ndim(v, name, 2);
  check_contiguous(v, name);
  BIGMODEL_CHECK(v.sizes[1] * element_size(v.dtype) % 16 == 0 && reinterpret_cast<uintptr_t>(v.data) % 16 == 0, name,
                 "'s rows must begin at multiples of 16 bytes, got ", shape_string(v));
}

}  // namespace

void semi_sparse_linear_cuda(const View& x, const View& values, const View& index, const View* bias, const View& out,
                             SemiShape shape, void* stream) {
  check_float(x, "x");
  check_rows(x, "x");
  check_ndim(out, "out", 2);
  const int64_t m = x.sizes[0], k = x.sizes[1], n = out.sizes[1];
  check_shape(out, "out", {m, n});
  check_contiguous(out, "out");
  check_dtype(out, "out", x.dtype);
  check_dtype(values, "values", x.dtype);
  check_shape(values, "values", {tiles(n), tiles(k), 8, 2, kSemi});
  check_contiguous(values, "values");
  check_dtype(index, "index", DType::u8);
  check_shape(index, "index", {tiles(n), tiles(k), kSemi, 4});
  check_contiguous(index, "index");
  if (bias) {
    check_dtype(*bias, "bias", DType::f32);
    check_shape(*bias, "bias", {n});
    check_contiguous(*bias, "bias");
  }
  if (m == 0 || n == 0) return;
  const SemiArgs args{x.data,
                      values.data,
                      index.as<uint8_t>(),
                      bias ? bias->as<float>() : nullptr,
                      out.data,
                      m,
                      n,
                      k,
                      tiles(n),
                      tiles(k),
                      0,
                      0};
  const DeviceGuard guard(x.device);
  const auto on = static_cast<cudaStream_t>(stream);
  if (x.dtype == DType::f32) return launch_semi_sparse_linear<DType::f32>(args, shape, x.device, on);
  if (x.dtype == DType::bf16) return launch_semi_sparse_linear<DType::bf16>(args, shape, x.device, on);
  launch_semi_sparse_linear<DType::f16>(args, shape, x.device, on);
}

}  // namespace bigmodel
