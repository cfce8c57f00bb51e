// What a kernel's source starts with: CUDA's own language with nvcc, the emulator's (csrc/emulator) with a host
// compiler.
//
// Shared memory: dynamic_shared<T>() is the launch's dynamic shared memory, aligned to 1024 bytes.
// BIGMODEL_SHARED(name, type) declares a variable, say BIGMODEL_SHARED(sums, float[32]).
#pragma once

namespace bigmodel {

template <typename T>
using Identity = T;

}  // namespace bigmodel

#if defined(BIGMODEL_EMULATED)

#include "../emulator/device.h"

#define BIGMODEL_SM90A 1

#else

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#define BIGMODEL_SHARED(name, ...) __shared__ __align__(16)::bigmodel::Identity<__VA_ARGS__> name

// wgmma and its kin exist in this pass of the compiler.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define BIGMODEL_SM90A 1
#endif

namespace bigmodel {

template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(1024) unsigned char dynamic_shared_bytes[];
  return reinterpret_cast<T*>(dynamic_shared_bytes);
}

}  // namespace bigmodel

#endif
