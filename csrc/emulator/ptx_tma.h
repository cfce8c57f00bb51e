// Twins of csrc/cuda/ptx_tma.h, which documents them.
#pragma once

#include "ptx.h"
#include "tensor_copy.h"

namespace bigmodel::ptx {

inline void mbarrier_init(uint32_t barrier, uint32_t count, Site site = here()) {
  emulator::mbarrier_init(barrier, count, site);
}
inline void fence_mbarrier_init(Site site = here()) {
  if (emulator::synchronises(site, "fence.mbarrier_init")) emulator::mbarrier_publish();
}
inline void mbarrier_arrive(uint32_t barrier, Site site = here()) {
  if (emulator::synchronises(site, "mbarrier.arrive")) emulator::mbarrier_arrive(barrier, 0, site);
}
inline void mbarrier_arrive_expect(uint32_t barrier, uint32_t bytes, Site site = here()) {
  if (emulator::synchronises(site, "mbarrier.arrive.expect_tx")) emulator::mbarrier_arrive(barrier, bytes, site);
}
inline void mbarrier_wait(uint32_t barrier, uint32_t parity, Site site = here()) {
  if (emulator::synchronises(site, "mbarrier.try_wait")) emulator::mbarrier_wait(barrier, parity, site);
}

inline void tensor_load(uint32_t to, const TensorMap& map, int x, int y, uint32_t barrier, Site site = here()) {
  emulator::tensor_load({map, {x, y, 0}, to}, barrier, site);
}
inline void tensor_load(uint32_t to, const TensorMap& map, int x, int y, int z, uint32_t barrier, Site site = here()) {
  emulator::tensor_load({map, {x, y, z}, to}, barrier, site);
}
inline void tensor_store(const TensorMap& map, int x, int y, uint32_t from, Site site = here()) {
  emulator::tensor_store({map, {x, y, 0}, from}, site);
}
inline void tensor_store(const TensorMap& map, int x, int y, int z, uint32_t from, Site site = here()) {
  emulator::tensor_store({map, {x, y, z}, from}, site);
}
inline void commit_stores() { emulator::commit_stores(); }
template <int kGroupsLeft>
inline void wait_stores(Site site = here()) {
  emulator::wait_for_stores(kGroupsLeft, site, "cp.async.bulk.wait_group.read");
}
inline void prefetch_tensor_map(const TensorMap&) {}

inline void fence_async_proxy(Site site = here()) {
  if (emulator::synchronises(site, "fence.proxy.async")) emulator::publish_to_async();
}

inline bool elect_one(Site site = here()) {
  char nothing = 0;
  emulator::meet<char>("elect.sync", 0xffffffffu, nothing, [](char* const*, uint32_t, Site) {}, site);
  return emulator::current->lane == 0;
}

template <int kRegisters>
inline void give_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256, "setmaxnreg counts in eights.");
}
template <int kRegisters>
inline void take_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256, "setmaxnreg counts in eights.");
}

}  // namespace bigmodel::ptx
