#include "fused_dropout_norm.h"

#include <algorithm>

#include "fused_dropout_norm_launch.h"

namespace bigmodel {

void fused_dropout_norm_cuda(const DropoutNormArgs& args, int device, void* stream) {
  if (args.rows == 0) return;
  const DeviceGuard guard(device);
  const auto where = static_cast<cudaStream_t>(stream);
  if (args.dropout.dtype == DType::f32) return launch_norm<DType::f32>(args, where);
  if (args.dropout.dtype == DType::bf16) return launch_norm<DType::bf16>(args, where);
  launch_norm<DType::f16>(args, where);
}

int64_t norm_slabs(int64_t rows, int64_t features, int device) {
  const int64_t most = kNormBackwardBlocks * int64_t{device_attribute(cudaDevAttrMultiProcessorCount, device)};
  const int64_t at_once = norm_rows_at_once(features);
  return std::min(most, (rows + at_once - 1) / at_once);
}

void fused_dropout_norm_backward_cuda(const DropoutNormBackwardArgs& args, int device, void* stream) {
  const DeviceGuard guard(device);
  const auto where = static_cast<cudaStream_t>(stream);
  const int64_t features = args.dropout.features, slabs = norm_slabs(args.rows, features, device);
  if (slabs > 0) {
    if (args.dropout.dtype == DType::f32)
      launch_norm_backward<DType::f32>(args, slabs, where);
    else if (args.dropout.dtype == DType::bf16)
      launch_norm_backward<DType::bf16>(args, slabs, where);
    else
      launch_norm_backward<DType::f16>(args, slabs, where);
  }
  launch_sum_slabs(args.slabs, slabs, args.vectors * features, args.sums, where);
}

}  // namespace bigmodel
