#include "fused_dropout.h"

#include "fused_dropout_launch.h"

namespace bigmodel {

namespace {

void run(const DropoutArgs& args, bool backward, int device, void* stream) {
  if (args.numel == 0) return;
  const DeviceGuard guard(device);
  const DropoutLaunch launch{device, static_cast<cudaStream_t>(stream)};
  if (args.dtype == DType::f32) return launch_fused_dropout<DType::f32>(args, backward, launch);
  if (args.dtype == DType::bf16) return launch_fused_dropout<DType::bf16>(args, backward, launch);
  launch_fused_dropout<DType::f16>(args, backward, launch);
}

}  // namespace

void fused_dropout_cuda(const DropoutArgs& args, int device, void* stream) { run(args, false, device, stream); }

void fused_dropout_backward_cuda(const DropoutArgs& args, int device, void* stream) { run(args, true, device, stream); }

}  // namespace bigmodel
