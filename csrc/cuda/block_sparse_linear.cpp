#include "block_sparse_linear.h"

#include "block_sparse_launch.h"
#include "sparse_checks.h"

namespace bigmodel {

namespace {

// The side of the blocks, and how many there are.
struct Blocks {
  int64_t size, count, rows, columns;
};

Blocks check_blocks(const View& values, DType dtype, const View& crow, const View& col, int64_t n, int64_t k) {
  check_ndim(values, "values", 3);
  const int64_t size = values.sizes[1], count = values.sizes[0];
  BIGMODEL_CHECK(size == 16 || size == 32 || size == 64, "blocks must be 16, 32 or 64 wide, got ", size);
  check_whole(values, "values", dtype, {count, size, size});
  const Blocks blocks{size, count, pieces_of(n, size), pieces_of(k, size)};
  check_whole(crow, "crow", DType::i32, {blocks.rows + 1});
  check_whole(col, "col", DType::i32, {count});
  return blocks;
}

ProductArgs product_args(const View& x, const View& values, const View& out, const Blocks& blocks) {
  ProductArgs args{};
  args.x = x.data;
  args.values = values.data;
  args.out = out.data;
  args.m = x.sizes[0];
  args.depth = x.sizes[1];
  args.width = out.sizes[1];
  args.blocks = blocks.count;
  return args;
}

}  // namespace

void block_sparse_linear_cuda(const View& x, const View& values, const View& crow, const View& col, const View* bias,
                              const View& out, void* stream) {
  check_piecewise_rows(x, "x");
  check_ndim(out, "out", 2);
  const int64_t m = x.sizes[0], n = out.sizes[1];
  check_whole(out, "out", x.dtype, {m, n});
  const Blocks blocks = check_blocks(values, x.dtype, crow, col, n, x.sizes[1]);
  ProductArgs args = product_args(x, values, out, blocks);
  args.ends = crow.as<int32_t>();
  args.panel = col.as<int32_t>();
  args.bias = bias_of(bias, n);
  if (m == 0 || n == 0) return;
  const DeviceGuard guard(x.device);
  for_float_dtype(x.dtype, [&](auto dtype) {
    BlockProducts<dtype.value>::forward(args, blocks.size, static_cast<cudaStream_t>(stream));
  });
}

void block_sparse_linear_grad_input_cuda(const View& grad, const View& values, const View& crow, const View& col,
                                         const View& scratch, const View& out, void* stream) {
  check_piecewise_rows(grad, "grad");
  check_ndim(out, "out", 2);
  const int64_t m = grad.sizes[0], n = grad.sizes[1], k = out.sizes[1];
  check_whole(out, "out", grad.dtype, {m, k});
  const Blocks blocks = check_blocks(values, grad.dtype, crow, col, n, k);
  check_whole(scratch, "scratch", DType::i32, {blocks.columns, 1 + 2 * blocks.rows});
  if (m == 0 || k == 0) return;
  int32_t* const counts = scratch.as<int32_t>();
  int32_t *const row = counts + blocks.columns, *const order = row + blocks.columns * blocks.rows;
  ProductArgs args = product_args(grad, values, out, blocks);
  args.ends = counts;
  args.panel = row;
  args.order = order;
  args.list_stride = blocks.rows;
  const DeviceGuard guard(grad.device);
  const auto on = static_cast<cudaStream_t>(stream);
  launch_block_columns(
      {crow.as<int32_t>(), col.as<int32_t>(), counts, row, order, blocks.count, blocks.rows, blocks.columns}, on);
  for_float_dtype(grad.dtype, [&](auto dtype) { BlockProducts<dtype.value>::grad_input(args, blocks.size, on); });
}

void block_sparse_linear_grad_values_cuda(const View& grad, const View& x, const View& crow, const View& col,
                                          const View& out, int64_t n, int64_t k, void* stream) {
  check_piecewise_rows(grad, "grad");
  check_piecewise_rows(x, "x");
  check_dtype(x, "x", grad.dtype);
  check_size(x, "x", 0, grad.sizes[0]);
  BIGMODEL_CHECK(n <= grad.sizes[1] && k <= x.sizes[1], "n and k must be at most ", grad.sizes[1], " and ", x.sizes[1],
                 ", got ", n, " and ", k);
  const Blocks blocks = check_blocks(out, grad.dtype, crow, col, n, k);
  if (blocks.count == 0 || blocks.rows == 0) return;
  SampledArgs args{};
  args.x = x.data;
  args.grad = grad.data;
  args.crow = crow.as<int32_t>();
  args.col = col.as<int32_t>();
  args.out = out.data;
  args.m = x.sizes[0];
  args.n = n;
  args.k = k;
  args.x_width = x.sizes[1];
  args.grad_width = grad.sizes[1];
  args.blocks = blocks.count;
  args.block_rows = blocks.rows;
  const DeviceGuard guard(grad.device);
  for_float_dtype(grad.dtype, [&](auto dtype) {
    BlockProducts<dtype.value>::grad_values(args, blocks.size, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace bigmodel
