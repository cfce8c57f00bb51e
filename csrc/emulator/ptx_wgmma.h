// Twins of csrc/cuda/ptx_wgmma.h, which documents them.
#pragma once

#include "ptx.h"
#include "warpgroup.h"

namespace bigmodel::ptx {

inline void wgmma_fence(Site site = here()) { emulator::wgmma_fence(site); }
inline void wgmma_commit(Site site = here()) { emulator::wgmma_commit(site); }
template <int kGroupsLeft>
inline void wgmma_wait(Site site = here()) {
  emulator::wgmma_wait(kGroupsLeft, site);
}
template <typename T, int kRegisters>
inline void wgmma_hold(T (&)[kRegisters]) {}

template <int kRegisters>
inline void wgmma_s8(int32_t (&d)[kRegisters], uint64_t a, uint64_t b, bool accumulate, Site site = here()) {
  emulator::wgmma({emulator::Element::s8, 2 * kRegisters, d, a, b, accumulate}, site);
}
template <int kRegisters>
inline void wgmma_bf16(float (&d)[kRegisters], uint64_t a, uint64_t b, bool accumulate, Site site = here()) {
  emulator::wgmma({emulator::Element::bf16, 2 * kRegisters, d, a, b, accumulate}, site);
}
template <int kRegisters>
inline void wgmma_f16(float (&d)[kRegisters], uint64_t a, uint64_t b, bool accumulate, Site site = here()) {
  emulator::wgmma({emulator::Element::f16, 2 * kRegisters, d, a, b, accumulate}, site);
}

}  // namespace bigmodel::ptx
