// Work sharing over torch's own thread pool: there is never a second OpenMP runtime in the process,
// and torch.set_num_threads is honoured. The pool's C entry point arrives as an address at import.
#pragma once

#include <cstdint>

namespace bigmodel {

// torch_parallel_for and torch_get_num_threads of torch's stable C ABI (torch >= 2.10).
using ParallelBody = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, ParallelBody body, void* context);
using GetNumThreads = int32_t (*)(uint32_t* out);

void set_thread_pool(ParallelFor parallel_for, GetNumThreads get_num_threads);
int num_threads();

void parallel_run(int64_t n, int64_t grain, ParallelBody body, void* context);

// Calls body(begin, end) on disjoint ranges covering [0, n); a range has at least `grain` items unless it is the last.
// The body must not throw. Without a pool, or when n <= grain, it runs on the calling thread.
template <typename Body>
void parallel_for(int64_t n, int64_t grain, Body&& body) {
  parallel_run(
      n, grain, [](int64_t begin, int64_t end, void* context) { (*static_cast<Body*>(context))(begin, end); }, &body);
}

}  // namespace bigmodel
