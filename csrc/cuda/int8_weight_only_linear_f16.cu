#include "int8_weight_only_linear_kernel.cuh"
#include "int8_weight_only_linear_launch.h"

namespace bigmodel {

template <>
void launch_int8_weight_only<DType::f16>(const LinearArgs& args, const int8_t* weight, const float* weight_scale,
                                         cudaStream_t stream) {
  launch_weight_only<DType::f16>(args, weight, weight_scale, stream);
}

}  // namespace bigmodel
