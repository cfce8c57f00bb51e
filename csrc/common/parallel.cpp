#include "parallel.h"

#include <stdexcept>

namespace bigmodel {
namespace {
ParallelFor pool_parallel_for = nullptr;
GetNumThreads pool_num_threads = nullptr;
}  // namespace

void set_thread_pool(ParallelFor parallel_for, GetNumThreads get_num_threads) {
  pool_parallel_for = parallel_for;
  pool_num_threads = get_num_threads;
}

int num_threads() {
  uint32_t n = 1;
  if (pool_num_threads) pool_num_threads(&n);
  return static_cast<int>(n);
}

void parallel_run(int64_t n, int64_t grain, ParallelBody body, void* context) {
  if (n <= 0) return;
  if (n <= grain || !pool_parallel_for) {
    body(0, n, context);
    return;
  }
  if (pool_parallel_for(0, n, grain, body, context) != 0)
    throw std::runtime_error("torch's thread pool reported an error while running a kernel");
}

}  // namespace bigmodel
