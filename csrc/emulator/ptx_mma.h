// Twins of csrc/cuda/ptx_mma.h, which documents them.
#pragma once

#include "matrix.h"
#include "ptx.h"

namespace bigmodel::ptx {

template <int kMatrices>
inline void load_matrix(uint32_t (&r)[kMatrices], uint32_t row, Site site = here()) {
  emulator::load_matrix(r, kMatrices, row, false, site);
}
template <int kMatrices>
inline void load_matrix_transposed(uint32_t (&r)[kMatrices], uint32_t row, Site site = here()) {
  emulator::load_matrix(r, kMatrices, row, true, site);
}

inline void mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = here()) {
  emulator::mma({emulator::Element::s8, d, a, b, 0, -1}, site);
}
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = here()) {
  emulator::mma({emulator::Element::bf16, d, a, b, 0, -1}, site);
}
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = here()) {
  emulator::mma({emulator::Element::f16, d, a, b, 0, -1}, site);
}

inline void mma_sparse_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t metadata,
                          Site site = here()) {
  emulator::mma({emulator::Element::s8, d, a, b, metadata, 0}, site);
}
template <int kSelector>
inline void mma_sparse_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t metadata,
                            Site site = here()) {
  emulator::mma({emulator::Element::bf16, d, a, b, metadata, kSelector}, site);
}
template <int kSelector>
inline void mma_sparse_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t metadata,
                           Site site = here()) {
  emulator::mma({emulator::Element::f16, d, a, b, metadata, kSelector}, site);
}

}  // namespace bigmodel::ptx
