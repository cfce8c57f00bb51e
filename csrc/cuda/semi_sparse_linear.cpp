#include "semi_sparse_linear.h"

#include "block_sparse_launch.h"
#include "semi_sparse_launch.h"
#include "sparse_checks.h"

namespace bigmodel {

namespace {

constexpr int64_t kSemi = 32;

int64_t tiles(int64_t size) { return pieces_of(size, kSemi); }

void check_tiles(const View* values, DType dtype, const View& index, int64_t n, int64_t k) {
  if (values) check_whole(*values, "values", dtype, {tiles(n), tiles(k), 8, 2, kSemi});
  check_whole(index, "index", DType::u8, {tiles(n), tiles(k), kSemi, 4});
}

}  // namespace

void semi_sparse_linear_cuda(const View& x, const View& values, const View& index, const View* bias, const View& out,
                             SemiShape shape, void* stream) {
  check_piecewise_rows(x, "x");
  check_ndim(out, "out", 2);
  const int64_t m = x.sizes[0], k = x.sizes[1], n = out.sizes[1];
  check_whole(out, "out", x.dtype, {m, n});
  check_tiles(&values, x.dtype, index, n, k);
  const SemiArgs args{
      x.data, values.data, index.as<uint8_t>(), bias_of(bias, n), out.data, m, n, k, tiles(n), tiles(k), 0, 0};
  if (m == 0 || n == 0) return;
  const DeviceGuard guard(x.device);
  for_float_dtype(x.dtype, [&](auto dtype) {
    launch_semi_sparse_linear<dtype.value>(args, shape, x.device, static_cast<cudaStream_t>(stream));
  });
}

void semi_sparse_linear_grad_input_cuda(const View& grad, const View& values, const View& index, const View& out,
                                        void* stream) {
  check_piecewise_rows(grad, "grad");
  check_ndim(out, "out", 2);
  const int64_t m = grad.sizes[0], n = grad.sizes[1], k = out.sizes[1];
  check_whole(out, "out", grad.dtype, {m, k});
  check_tiles(&values, grad.dtype, index, n, k);
  if (m == 0 || k == 0) return;
  ProductArgs args{};
  args.x = grad.data;
  args.values = values.data;
  args.index = index.as<uint8_t>();
  args.out = out.data;
  args.m = m;
  args.depth = n;
  args.width = k;
  args.tile_rows = tiles(n);
  args.tile_columns = tiles(k);
  const DeviceGuard guard(grad.device);
  for_float_dtype(grad.dtype, [&](auto dtype) {
    BlockProducts<dtype.value>::semi_grad_input(args, static_cast<cudaStream_t>(stream));
  });
}

void semi_sparse_linear_grad_values_cuda(const View& grad, const View& x, const View& index, const View& out, int64_t n,
                                         int64_t k, void* stream) {
  check_piecewise_rows(grad, "grad");
  check_piecewise_rows(x, "x");
  check_dtype(x, "x", grad.dtype);
  check_size(x, "x", 0, grad.sizes[0]);
  BIGMODEL_CHECK(n <= grad.sizes[1] && k <= x.sizes[1], "n and k must be at most ", grad.sizes[1], " and ", x.sizes[1],
                 ", got ", n, " and ", k);
  check_tiles(&out, grad.dtype, index, n, k);
  if (out.numel() == 0) return;
  SampledArgs args{};
  args.x = x.data;
  args.grad = grad.data;
  args.index = index.as<uint8_t>();
  args.out = out.data;
  args.m = x.sizes[0];
  args.n = n;
  args.k = k;
  args.x_width = x.sizes[1];
  args.grad_width = grad.sizes[1];
  args.tile_rows = tiles(n);
  args.tile_columns = tiles(k);
  const DeviceGuard guard(grad.device);
  for_float_dtype(grad.dtype, [&](auto dtype) {
    BlockProducts<dtype.value>::semi_grad_values(args, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace bigmodel
