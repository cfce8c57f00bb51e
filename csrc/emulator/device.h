// What csrc/cuda/device.h brings when kernels are compiled for the emulator.
#pragma once

#include "builtins.h"
#include "runtime.h"
#include "shared.h"

namespace bigmodel {

template <typename T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(emulator::dynamic_shared_memory());
}

}  // namespace bigmodel

#define BIGMODEL_SHARED(name, ...)                               \
  static const char name##_declaration = 0;                      \
  auto& name = *static_cast<::bigmodel::Identity<__VA_ARGS__>*>( \
      ::bigmodel::emulator::shared_variable(&name##_declaration, sizeof(__VA_ARGS__), alignof(__VA_ARGS__)))
