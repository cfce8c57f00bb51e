// Twins of csrc/cuda/ptx_async.h, which documents them.
#pragma once

#include "async_copy.h"
#include "ptx.h"

namespace bigmodel::ptx {

inline void copy_async_16(uint32_t to, const void* from, int bytes = 16, Site site = here()) {
  emulator::copy_async(to, from, bytes, 16, site);
}
template <int kBytes>
inline void copy_async_small(uint32_t to, const void* from, int bytes = kBytes, Site site = here()) {
  static_assert(kBytes == 4 || kBytes == 8, "cp.async.ca of 4 or 8 bytes.");
  emulator::copy_async(to, from, bytes, kBytes, site);
}
inline void commit_async() { emulator::commit_copies(); }
template <int kGroupsLeft>
inline void wait_async(Site site = here()) {
  emulator::wait_for_copies(kGroupsLeft, site, "cp.async.wait_group");
}

}  // namespace bigmodel::ptx
