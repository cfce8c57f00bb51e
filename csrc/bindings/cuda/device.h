// What bindings of CUDA kernels share: which device the tensors are on, and torch's current stream. The emulator's
// device is the CPU.
#pragma once

#include <optional>

#include "../../common/check.h"
#include "../tensor.h"

namespace bigmodel {

#if defined(BIGMODEL_EMULATED)
constexpr dlpack::DeviceType kDevice = dlpack::kCPU;
#else
constexpr dlpack::DeviceType kDevice = dlpack::kCUDA;
#endif

inline View device_view(pybind11::handle tensor, const char* name) { return view(tensor, name, kDevice); }

// None gives no view; other tensors must be where the first argument is.
inline std::optional<View> device_view(pybind11::handle tensor, const char* name, const View& first) {
  const auto v = optional_view(tensor, name, kDevice);
  BIGMODEL_CHECK(!v || v->device == first.device, name, " must be on x's device cuda:", first.device,
                 ", got cuda:", v->device);
  return v;
}

inline void* current_stream(const View& v) {
  void* stream = nullptr;
  if (kDevice == dlpack::kCUDA && exchange_api().current_stream(kDevice, v.device, &stream) != 0)
    throw pybind11::error_already_set();
  return stream;
}

}  // namespace bigmodel
