#include "async_copy.h"

#include <cstring>

#include "block.h"
#include "shared.h"

namespace bigmodel::emulator {

void copy_async(uint32_t to, const void* from, int bytes, int filled, Site site) {
  if (bytes < 0 || bytes > filled)
    fail(site, "cp.async of " + std::to_string(bytes) + " bytes to " + std::to_string(filled));
  if (bytes && reinterpret_cast<uintptr_t>(from) % static_cast<uintptr_t>(filled))
    fail(site, "cp.async from an address that is not a multiple of " + std::to_string(filled));
  shared_bytes(to, static_cast<size_t>(filled), static_cast<size_t>(filled), site);
  poison(to, static_cast<size_t>(filled));
  current->copies->pending.push_back({to, from, bytes, filled, current->copies->groups});
}

void commit_copies() { ++current->copies->groups; }

void wait_for_copies(int groups_left, Site site, const char* what) {
  if (!synchronises(site, what)) return;
  AsyncCopies& copies = *current->copies;
  size_t kept = 0;
  for (const AsyncCopies::Copy& copy : copies.pending) {
    if (groups_left >= 0 && copy.group >= copies.groups - groups_left) {
      copies.pending[kept++] = copy;
      continue;
    }
    char* to = shared_bytes(copy.to, static_cast<size_t>(copy.filled), 1, site);
    std::memcpy(to, copy.from, static_cast<size_t>(copy.bytes));
    std::memset(to + copy.bytes, 0, static_cast<size_t>(copy.filled - copy.bytes));
  }
  copies.pending.resize(kept);
}

}  // namespace bigmodel::emulator
