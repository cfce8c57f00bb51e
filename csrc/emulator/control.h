// What a test tells the emulator before a launch, and what the emulator tells about the launch afterwards.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "types.h"

namespace bigmodel::emulator {

// A place in a kernel's source, taken as a default argument: that of the outermost call.
struct Site {
  const char* file = nullptr;
  int line = 0;
};
inline Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
std::string to_string(Site site);  // the last folder, the file and the line

enum class Schedule { ascending, descending, random };

struct Settings {
  Schedule schedule = Schedule::ascending;
  uint64_t seed = 0;        // of Schedule::random
  std::string skip;         // a synchronising site, as to_string gives it, that does nothing; empty: none
  int architecture = 90;    // the compute capability that the device claims, times 10
  int multiprocessors = 4;  // few, so that persistent kernels go round their loops
};
Settings& settings();

struct SiteReport {
  std::string site, what;  // what: the barrier or wait that stands there
};

struct LaunchReport {
  std::string kernel;
  dim3 grid, block;
  size_t shared_bytes = 0;
  std::vector<SiteReport> sites;  // the synchronising sites that were reached
  // Passes of eight lanes x 16 bytes through shared memory, and the further ones that bank conflicts cost.
  uint64_t matrix_loads = 0, matrix_conflicts = 0;     // of ldmatrix
  uint64_t shared_accesses = 0, shared_conflicts = 0;  // of ptx::load_shared_16 and store_shared_16
};
std::vector<LaunchReport>& reports();  // of the launches since the list was cleared, at most 1000

}  // namespace bigmodel::emulator
