// cp.async: copies that a thread has asked for and not yet waited for. The bytes move at the wait; until then the
// destination is poison.
#pragma once

#include <cstdint>
#include <vector>

#include "control.h"

namespace bigmodel::emulator {

struct AsyncCopies {
  struct Copy {
    uint32_t to;
    const void* from;
    int bytes, filled;  // `bytes` are read, the rest of `filled` becomes zero
    int group;
  };
  std::vector<Copy> pending;
  int groups = 0;  // committed so far

  void clear() {
    pending.clear();
    groups = 0;
  }
};

void copy_async(uint32_t to, const void* from, int bytes, int filled, Site site);
void commit_copies();
void wait_for_copies(int groups_left, Site site, const char* what);  // -1: also what was never committed

}  // namespace bigmodel::emulator
