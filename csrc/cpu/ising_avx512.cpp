namespace {
constexpr int kUpdateTile = 16;  // places of the field whose sums stay in registers
}

#include "ising_vector.h"

namespace bigmodel {

const IsingKernels ising_kernels_avx512 = kKernels;

}  // namespace bigmodel
