#include "segment_order.h"

#include <algorithm>

#include "../common/check.h"
#include "panel_csr.h"

namespace bigmodel {
namespace {

// Sorts a block's numbers of entries, by counting; order[i] is the row that comes to place i.
void sort_block(int64_t rows, int32_t* counts, int32_t* order) {
  int32_t before[kBlockRows], place[kPanelColumns + 2] = {};
  for (int64_t r = 0; r < rows; ++r) {
    before[r] = counts[r];
    ++place[counts[r] + 1];
  }
  for (int64_t length = 0; length < kPanelColumns; ++length) place[length + 1] += place[length];
  for (int64_t r = 0; r < rows; ++r) {
    const int32_t to = place[before[r]]++;
    counts[to] = before[r];
    order[to] = static_cast<int32_t>(r);
  }
}

}  // namespace

int64_t order_segments(int64_t panels, int64_t n, int32_t* crow, int32_t* order) {
  const int64_t block = order_rows(n), blocks = (n + block - 1) / block;
  if (order) {
    constexpr int64_t kGrain = 16;  // blocks: about 10 us
    parallel_for(panels * blocks, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i % blocks * block, at = i / blocks * n + first;
        sort_block(std::min(block, n - first), crow + 1 + at, order + at);
      }
    });
  }
  int64_t total = 0;
  crow[0] = 0;
  for (int64_t i = 1; i <= panels * n; ++i) {
    total += crow[i];
    crow[i] = static_cast<int32_t>(total);
  }
  BIGMODEL_CHECK(total < int64_t{1} << 31, "at most 2^31 - 1 entries can be stored, got ", total);
  return total;
}

}  // namespace bigmodel
