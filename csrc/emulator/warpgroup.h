// wgmma; csrc/cuda/ptx_wgmma.h has the layouts. Each warp computes its 16 rows when it waits for the product's group,
// from shared memory as it is then; until then the accumulators' registers hold garbage.
#pragma once

#include <cstdint>

#include "matrix.h"

namespace bigmodel::emulator {

struct Wgmma {
  Element element;
  int columns;  // N
  void* d;      // columns / 2 registers
  uint64_t a, b;
  bool accumulate;
};

void start_warpgroups();  // at a block's start: nothing is under way
void wgmma_fence(Site site);
void wgmma(Wgmma own, Site site);
void wgmma_commit(Site site);
void wgmma_wait(int groups_left, Site site);

}  // namespace bigmodel::emulator
