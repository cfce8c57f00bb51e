namespace {
constexpr int kUpdateTile = 2;  // places of the field whose sums stay in registers
}

#include "ising_vector.h"

namespace bigmodel {

const IsingKernels ising_kernels_scalar = kKernels;

}  // namespace bigmodel
