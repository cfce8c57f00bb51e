// The part of the CUDA runtime's interface that csrc/cuda uses: one device, whose memory is the host's.
#pragma once

#include <cstring>

#include "control.h"

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrL2CacheSize
};

inline const char* cudaGetErrorString(cudaError_t error) { return error ? "invalid argument" : "no error"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidValue; }

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const bigmodel::emulator::Settings& s = bigmodel::emulator::settings();
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = s.multiprocessors;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = s.architecture / 10;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = s.architecture % 10;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = s.architecture == 86 || s.architecture == 89 ? 99 << 10 : s.architecture < 90 ? 163 << 10 : 227 << 10;
      break;
    case cudaDevAttrL2CacheSize:
      *value = 50 << 20;
      break;
  }
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) {
  std::memset(p, value, bytes);
  return cudaSuccess;
}
