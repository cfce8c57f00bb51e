namespace {
constexpr int kUpdateTile = 5;  // places of the field whose sums stay in registers
}

#include "ising_vector.h"

namespace bigmodel {

const IsingKernels ising_kernels_avx2 = kKernels;

}  // namespace bigmodel
