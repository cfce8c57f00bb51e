#include "binary_coded_linear.h"

#include "binary_coded_linear_launch.h"

namespace bigmodel {

int64_t binary_coded_workspace(int64_t m, int64_t k, int64_t group_size) {
  return round_up(m * 4, 16) + m * binary_groups(k, group_size).bytes;
}

void binary_coded_linear_cuda(const BinaryCodedArgs& args, int device, void* stream) {
  const LinearArgs& a = args.linear;
  if (a.m == 0 || a.n == 0) return;
  const DeviceGuard guard(device);
  const auto where = static_cast<cudaStream_t>(stream);
  const bool narrow = ceil_div(a.n, 64) * ceil_div(a.m, 8) < device_attribute(cudaDevAttrMultiProcessorCount, device);
  if (a.dtype == DType::f32) return launch_binary_coded<DType::f32>(args, narrow, where);
  if (a.dtype == DType::bf16) return launch_binary_coded<DType::bf16>(args, narrow, where);
  launch_binary_coded<DType::f16>(args, narrow, where);
}

}  // namespace bigmodel
