// Launches on the emulator.
#pragma once

#include <utility>

#include "block.h"
#include "runtime.h"

namespace bigmodel {

struct LaunchShape {
  dim3 grid, block;
  size_t shared_bytes = 0;
  cudaStream_t stream = nullptr;
};

template <typename... Params, typename... Args>
void launch(const char* name, void (*kernel)(Params...), const LaunchShape& shape, const Args&... args) {
  emulator::run_grid(name, shape.grid, shape.block, shape.shared_bytes, [&] { kernel(static_cast<Params>(args)...); });
}

}  // namespace bigmodel
