// The block of threads that is being emulated. Each CUDA thread is a fiber that runs until it has to wait: at a
// barrier, or at a warp collective until its partners are there. Blocks run one after another, so a kernel that waits
// for another block deadlocks here. One launch at a time: launches from several threads queue.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "control.h"
#include "types.h"

namespace bigmodel::emulator {

constexpr int kLanes = 32, kMaxThreads = 1024, kMaxWarps = kMaxThreads / kLanes, kBarriers = 16;

struct AsyncCopies;  // async_copy.h

struct Thread {
  uint3 index;
  int id = 0, lane = 0, warp = 0;
  AsyncCopies* copies = nullptr;
  // Why it does not run, for reports; null while it does.
  const char* waits = nullptr;
  Site site;
};

extern Thread* current;    // whose fiber runs now
extern uint3 block_index;  // of the block that runs now
extern dim3 grid_size, block_size;

// Runs a grid. `body` calls the kernel; `shared_bytes` of dynamic shared memory. Throws std::runtime_error with kernel,
// block, thread and source line for what the emulator finds wrong.
void run_grid(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);

// Ends the launch with an error about the current thread (or about `thread`).
[[noreturn]] void fail(Site site, const std::string& what, const Thread* thread = nullptr);

// For every synchronising wrapper: records that the launch reached the site; false if it is to be skipped.
bool synchronises(Site site, const char* what);
void start_sites();  // at a launch's start

// Whether at least `count` threads have arrived since the barrier was last passed; then all go on. count 0: all threads
// of the block that have not returned, which must then come from the same source line.
void barrier_sync(int barrier, int count, Site site, const char* what);
void barrier_arrive(int barrier, int count, Site site, const char* what);

// Suspends the current thread until `ready` gives true; it is asked again after every call of changed().
void wait_until(bool (*ready)(const void*), const void* argument, Site site, const char* what);
void changed();

// A rendezvous of the lanes in `mask`: each brings an argument, the last to come calls `complete` with all of them (by
// lane), and all go on. Lanes that meet must be at the same source line in the same operation.
using Complete = void (*)(void* const* arguments, uint32_t mask, Site site);
void meet(const char* what, uint32_t mask, void* argument, Complete complete, Site site);
const Thread& lane_of_warp(int lane);  // of the current warp: for reports

template <typename T>
void meet(const char* what, uint32_t mask, T& argument, void (*complete)(T* const*, uint32_t, Site), Site site) {
  struct Call {
    T* argument;
    void (*complete)(T* const*, uint32_t, Site);
  } call{&argument, complete};
  meet(
      what, mask, static_cast<void*>(&call),
      [](void* const* calls, uint32_t lanes, Site where) {
        T* arguments[kLanes] = {};
        Call* any = nullptr;
        for (int l = 0; l < kLanes; ++l) {
          if (!(lanes >> l & 1)) continue;
          any = static_cast<Call*>(calls[l]);
          arguments[l] = any->argument;
        }
        any->complete(arguments, lanes, where);
      },
      site);
}

extern LaunchReport* report;  // of the launch that runs

}  // namespace bigmodel::emulator
