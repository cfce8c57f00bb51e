// A block pattern's transpose, for the input gradient: a warp for each block column looks it up in every block row.
// Columns increase within a row, so a lane searches its row by bisection and the warp's ballot puts what was found in
// the rows' order. A few microseconds, and nothing to keep from call to call.
#include "block_sparse_launch.h"
#include "launch.h"

namespace bigmodel {

namespace {

__global__ void __launch_bounds__(32) block_columns_kernel(BlockColumns a) {
  const int64_t column = blockIdx.x, list = column * a.rows;
  const int lane = static_cast<int>(threadIdx.x);
  int count = 0;
  for (int64_t first = 0; first < a.rows; first += 32) {
    const int64_t row = first + lane;
    int64_t low = 0, end = 0;
    if (row < a.rows) {
      low = max(int64_t{__ldg(a.crow + row)}, int64_t{0});
      end = min(int64_t{__ldg(a.crow + row + 1)}, a.blocks);
    }
    for (int64_t high = end; low < high;) {  // the first block that is not left of the column
      const int64_t middle = (low + high) / 2;
      if (__ldg(a.col + middle) < column)
        low = middle + 1;
      else
        high = middle;
    }
    const bool found = low < end && __ldg(a.col + low) == column;
    const unsigned all = __ballot_sync(0xffffffffu, found);
    if (found) {
      const int64_t at = list + count + __popc(all & ((1u << lane) - 1));
      a.order[at] = static_cast<int32_t>(low);
      a.row[at] = static_cast<int32_t>(row);
    }
    count += __popc(all);
  }
  if (lane == 0) a.counts[column] = count;
}

}  // namespace

void launch_block_columns(const BlockColumns& columns, cudaStream_t stream) {
  launch("block_columns", block_columns_kernel, {static_cast<unsigned>(columns.columns), 32, 0, stream}, columns);
}

}  // namespace bigmodel
