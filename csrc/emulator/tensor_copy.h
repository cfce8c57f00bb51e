// TMA copies and the mbarriers that they report to. A load's bytes arrive when a thread waits for its barrier and
// nothing but them is missing; until then its destination is poison. A store's bytes are read at the thread's wait.
#pragma once

#include <cstdint>

#include "control.h"
#include "tensor_map.h"

namespace bigmodel::emulator {

struct Box {
  TensorMap map;
  int at[3];
  uint32_t shared;
  uint32_t bytes() const { return static_cast<uint32_t>(map.box[0] * map.box[1] * map.box[2] * map.element_bytes); }
};

void start_mbarriers();  // at a block's start: there are none

void mbarrier_init(uint32_t address, uint32_t count, Site site);
void mbarrier_publish();  // those that the current thread has initialised become known to copies
void mbarrier_arrive(uint32_t address, uint32_t bytes, Site site);
void mbarrier_wait(uint32_t address, uint32_t parity, Site site);

void tensor_load(const Box& box, uint32_t barrier, Site site);
void tensor_store(const Box& box, Site site);
void commit_stores();
void wait_for_stores(int groups_left, Site site, const char* what);
void check_no_stores();  // when a thread returns

}  // namespace bigmodel::emulator
