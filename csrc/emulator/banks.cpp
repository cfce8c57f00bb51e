#include "banks.h"

#include <algorithm>
#include <deque>
#include <map>
#include <tuple>

#include "block.h"

namespace bigmodel::emulator {

namespace {

struct Eight {
  uint32_t addresses[8];
  int lanes = 0;
};

// The accesses of eight lanes at a site, from the first on that is not complete.
struct History {
  std::deque<Eight> accesses;
  size_t done = 0, next[8] = {};
};

std::map<std::tuple<const char*, int, int>, History> histories;  // by site and eight lanes of the block

}  // namespace

uint32_t conflicts_of(const uint32_t (&addresses)[8]) {
  uint32_t most = 1;
  for (int i = 0; i < 8; ++i) {
    uint32_t passes = 1;  // for the lanes up to this one that share its banks
    for (int j = 0; j < i; ++j) {
      const bool same_banks = addresses[j] / 16 % 8 == addresses[i] / 16 % 8;
      const bool seen = std::find(addresses, addresses + j, addresses[j]) != addresses + j;
      passes += same_banks && !seen && addresses[j] != addresses[i];
    }
    most = std::max(most, passes);
  }
  return most - 1;
}

void start_banks() { histories.clear(); }

void count_shared_access(uint32_t address, Site site) {
  History& history = histories[{site.file, site.line, current->id / 8}];
  const int lane = current->id % 8;
  const size_t n = history.next[lane]++;
  while (history.done + history.accesses.size() <= n) history.accesses.emplace_back();
  Eight& access = history.accesses[n - history.done];
  access.addresses[lane] = address;
  if (++access.lanes < 8) return;
  ++report->shared_accesses;
  report->shared_conflicts += conflicts_of(access.addresses);
  while (!history.accesses.empty() && history.accesses.front().lanes == 8) {
    history.accesses.pop_front();
    ++history.done;
  }
}

}  // namespace bigmodel::emulator
