// The tensor-core instructions of a warp; csrc/cuda/ptx_mma.h has the fragments' layouts.
#pragma once

#include <cstdint>

#include "control.h"

namespace bigmodel::emulator {

// `matrices` is 1, 2 or 4.
void load_matrix(uint32_t* registers, int matrices, uint32_t row, bool transposed, Site site);

enum class Element { s8, bf16, f16 };

struct Mma {
  Element element;
  void* d;            // 4 int32 or float
  const uint32_t* a;  // 4 registers
  const uint32_t* b;  // 2 registers; 4 with a sparse A
  uint32_t metadata;
  int selector;  // -1: A is dense
};
void mma(Mma own, Site site);

}  // namespace bigmodel::emulator
