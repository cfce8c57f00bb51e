// Running a kernel without the interpreter's lock, unless it is so small that giving the lock up and taking it again
// would take longer than the kernel.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <utility>

namespace bigmodel {

constexpr int64_t kSmallWork = 4096;

// `work` counts the kernel's elements or products, roughly.
template <typename Kernel>
void unlocked(int64_t work, Kernel&& kernel) {
  std::optional<pybind11::gil_scoped_release> release;
  if (work > kSmallWork) release.emplace();
  std::forward<Kernel>(kernel)();
}

}  // namespace bigmodel
