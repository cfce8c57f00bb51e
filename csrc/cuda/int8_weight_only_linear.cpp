#include "int8_weight_only_linear.h"

#include "int8_weight_only_linear_launch.h"

namespace bigmodel {

void int8_weight_only_linear_cuda(const LinearArgs& args, const int8_t* weight, const float* weight_scale, int device,
                                  void* stream) {
  if (args.m == 0 || args.n == 0) return;
  const DeviceGuard guard(device);
  const auto where = static_cast<cudaStream_t>(stream);
  if (args.dtype == DType::f32) return launch_int8_weight_only<DType::f32>(args, weight, weight_scale, where);
  if (args.dtype == DType::bf16) return launch_int8_weight_only<DType::bf16>(args, weight, weight_scale, where);
  launch_int8_weight_only<DType::f16>(args, weight, weight_scale, where);
}

}  // namespace bigmodel
