#include "fused_dropout.h"

#include <stdexcept>
#include <string>

#include "fused_dropout_launch.h"

namespace bigmodel {

namespace {

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("fused_dropout: CUDA: ") + cudaGetErrorString(error));
}

// The tensors' device for the time of a launch.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_));
    if (device == before_) return;
    check(cudaSetDevice(device));
    changed_ = true;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

void run(const DropoutArgs& args, bool backward, int device, void* stream) {
  if (args.numel == 0) return;
  const DeviceGuard guard(device);
  const DropoutLaunch launch{device, static_cast<cudaStream_t>(stream)};
  if (args.dtype == DType::f32) return check(launch_fused_dropout<DType::f32>(args, backward, launch));
  if (args.dtype == DType::bf16) return check(launch_fused_dropout<DType::bf16>(args, backward, launch));
  check(launch_fused_dropout<DType::f16>(args, backward, launch));
}

}  // namespace

void fused_dropout_cuda(const DropoutArgs& args, int device, void* stream) { run(args, false, device, stream); }

void fused_dropout_backward_cuda(const DropoutArgs& args, int device, void* stream) { run(args, true, device, stream); }

}  // namespace bigmodel
