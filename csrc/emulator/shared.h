// A block's shared memory: an arena with addresses of its own, as the hardware's shared window has. At a block's start
// it is filled with a pattern of 16-bit NaNs ("poison") that differs from address to address, so that what nobody wrote
// gives wrong results, and an error where a wrapper reads it.
#pragma once

#include <cstdint>

#include "control.h"

namespace bigmodel::emulator {

constexpr size_t kMaxShared = 227 << 10;  // what a block may have at most
constexpr uint32_t kSharedStart = 1024;   // the address of the first byte of dynamic shared memory

void open_shared(size_t dynamic_bytes);  // at a launch's start
void start_shared();                     // at a block's start: poison
void check_shared();                     // at a block's end: throws if something was written between the variables

char* dynamic_shared_memory();
// The variable that a declaration in the kernel stands for, the same for all threads; `tag` tells declarations apart.
void* shared_variable(const void* tag, size_t bytes, size_t alignment, Site site = here());

uint32_t shared_address(const void* pointer, Site site = here());

// `bytes` from `address` on, which must be aligned and inside one variable.
char* shared_bytes(uint32_t address, size_t bytes, size_t alignment, Site site);
// The same for reading: no 8 bytes of it may be poison.
const char* written_shared_bytes(uint32_t address, size_t bytes, size_t alignment, Site site);
void poison(uint32_t address, size_t bytes);

// Asynchronous reads (wgmma, TMA stores) see another picture of the memory: ordinary writes enter it at a
// fence.proxy.async, which here publishes all that was written so far, whoever wrote it.
void publish_to_async();
void check_visible_to_async(uint32_t address, size_t bytes, Site site);  // fails if the pictures differ
void set_visible_to_async(uint32_t address, size_t bytes);               // after an asynchronous write

// The address with its 16-byte chunk exchanged: swizzles of 32, 64 and 128 bytes; 0: none.
inline uint32_t swizzled(uint32_t address, int bytes) {
  return bytes ? address ^ ((address >> 7 & static_cast<uint32_t>(bytes / 16 - 1)) << 4) : address;
}

}  // namespace bigmodel::emulator
