#include "conv_image.h"

#include "isa.h"

namespace bigmodel {
namespace {

#if defined(__x86_64__)
constexpr Variants<const ConvImageKernels*> variants = {
    {&conv_image_scalar, &conv_image_avx2, &conv_image_avx512, nullptr}};
constexpr Variants<ConvDepthwiseKernel> packed_depthwise = {{nullptr, nullptr, nullptr, conv_depthwise_avx512vnni}};
#else
constexpr Variants<const ConvImageKernels*> variants = {{&conv_image_scalar, nullptr, nullptr, nullptr}};
constexpr Variants<ConvDepthwiseKernel> packed_depthwise = {{nullptr, nullptr, nullptr, nullptr}};
#endif

}  // namespace

const ConvImageKernels& conv_image_kernels() { return *variants.pick(); }

ConvDepthwiseKernel conv_depthwise_packed() { return packed_depthwise.pick(); }

}  // namespace bigmodel
