// The only way that kernels are launched:
//
//   launch("my_kernel", my_kernel<T>, {grid, threads, shared_bytes, stream}, arguments...);
//
// The name is for errors. Throws std::runtime_error if the launch fails.
#pragma once

#include "device.h"
#include "guard.h"

#if defined(BIGMODEL_EMULATED)

#include "../emulator/launch.h"

#else

namespace bigmodel {

struct LaunchShape {
  dim3 grid, block;
  size_t shared_bytes = 0;
  cudaStream_t stream = nullptr;
};

// A block may have more dynamic shared memory, if asked for. The limit is 48 KiB less its static variables, with room
// for dynamic memory's alignment; none of ours comes near to the 16 KiB left for them.
constexpr size_t kSharedWithoutAsking = 32 << 10;

template <typename... Params, typename... Args>
void launch(const char* name, void (*kernel)(Params...), const LaunchShape& shape, const Args&... args) {
  if (shape.shared_bytes > kSharedWithoutAsking)
    check_cuda(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared_bytes)),
        name);
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = shape.stream;
  check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), name);
}

}  // namespace bigmodel

#endif
