#include "activate_rows.h"

#include "../common/dropout.h"
#include "isa.h"

namespace bigmodel {
namespace {

#if defined(__x86_64__)
constexpr Variants<const ActivateKernels*> variants = {
    {&activate_kernels_scalar, &activate_kernels_avx2, &activate_kernels_avx512, nullptr}};
#else
constexpr Variants<const ActivateKernels*> variants = {{&activate_kernels_scalar, nullptr, nullptr, nullptr}};
#endif

}  // namespace

ActivateRows activate_rows(const char* activation) {
  return variants.pick()->kernels[static_cast<int>(parse_activation(activation))];
}

}  // namespace bigmodel
