#include "fused_dropout_kernel.cuh"

namespace bigmodel {

template <>
void launch_fused_dropout<DType::f32>(const DropoutArgs& args, bool backward, DropoutLaunch launch) {
  return backward ? launch_activation<DType::f32, true>(args, launch)
                  : launch_activation<DType::f32, false>(args, launch);
}

}  // namespace bigmodel
