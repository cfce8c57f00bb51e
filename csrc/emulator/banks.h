// Bank conflicts of 16-byte shared accesses: the hardware serves eight lanes at a time, in one pass if their 16 bytes
// lie in different banks or at the same address.
#pragma once

#include <cstdint>

#include "control.h"

namespace bigmodel::emulator {

// The further passes that eight addresses need.
uint32_t conflicts_of(const uint32_t (&addresses)[8]);

// A lane's access by a wrapper. The lanes of a warp need not meet there: the n-th access of each at a site are taken
// for one instruction. Eight lanes that are not complete at the block's end are not counted.
void count_shared_access(uint32_t address, Site site);
void start_banks();  // at a block's start

}  // namespace bigmodel::emulator
