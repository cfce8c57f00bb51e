#include "tensor_copy.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <vector>

#include "block.h"
#include "shared.h"

namespace bigmodel::emulator {

namespace {

constexpr uint64_t kCookie = 0x6d62617272696572;  // what an mbarrier's memory holds

struct Mbarrier {
  uint32_t count = 0, pending = 0;
  int64_t announced = 0, queued = 0;  // bytes of the phase
  uint32_t phase = 0;
  int initialiser = 0;  // thread
  bool known = false;   // to asynchronous copies
  std::vector<Box> loads;
};

struct Store {
  Box box;
  int group;
  Site site;
};
struct Stores {
  std::vector<Store> pending;
  int groups = 0;
};

std::map<uint32_t, Mbarrier> mbarriers;
std::map<int, Stores> stores;  // by thread

Mbarrier& at(uint32_t address, Site site) {
  const auto found = mbarriers.find(address);
  if (found == mbarriers.end()) fail(site, "there is no mbarrier at shared address " + std::to_string(address));
  if (std::memcmp(shared_bytes(address, 8, 8, site), &kCookie, 8) != 0)
    fail(site, "the mbarrier at shared address " + std::to_string(address) + " has been overwritten");
  return found->second;
}

// Moves a box, 16 bytes at a time; outside the tensor there are zeros, or nothing is written.
template <bool kLoad>
void move(const Box& box) {
  const TensorMap& m = box.map;
  const int per_chunk = 16 / m.element_bytes;
  uint32_t linear = box.shared;
  for (int z = 0; z < m.box[2]; ++z)
    for (int y = 0; y < m.box[1]; ++y)
      for (int x = 0; x < m.box[0]; x += per_chunk, linear += 16) {
        const int64_t gx = box.at[0] + x, gy = box.at[1] + y, gz = box.at[2] + z;
        const bool inside = gy >= 0 && gy < m.sizes[1] && gz >= 0 && gz < m.sizes[2];
        const int first =
            static_cast<int>(inside ? std::min<int64_t>(std::max<int64_t>(-gx, 0), per_chunk) : per_chunk);
        const int end = static_cast<int>(inside ? std::min<int64_t>(m.sizes[0] - gx, per_chunk) : 0);
        const uint32_t address = swizzled(linear, m.swizzle_bytes);
        char* shared = shared_bytes(address, 16, 16, {});
        if (kLoad) std::memset(shared, 0, 16);
        if (first < end) {
          char* global = m.address + gx * m.element_bytes + gy * m.strides[1] + gz * m.strides[2];
          const size_t bytes = static_cast<size_t>((end - first) * m.element_bytes), skip = first * m.element_bytes;
          kLoad ? std::memcpy(shared + skip, global + skip, bytes) : std::memcpy(global + skip, shared + skip, bytes);
        }
        if (kLoad) set_visible_to_async(address, 16);
      }
}

bool can_pass(const Mbarrier& b) { return b.pending == 0 && b.announced == b.queued; }

void pass(Mbarrier& b) {
  for (const Box& box : b.loads) move<true>(box);
  b.loads.clear();
  b.announced = b.queued = 0;
  b.pending = b.count;
  ++b.phase;
  changed();
}

void check_box(const Box& box, Site site) {
  const uint32_t alignment = box.map.swizzle_bytes ? 8u * static_cast<uint32_t>(box.map.swizzle_bytes) : 128u;
  shared_bytes(box.shared, box.bytes(), alignment, site);
}

struct Waiting {
  uint32_t address, parity;
  Site site;
};

}  // namespace

void start_mbarriers() {
  mbarriers.clear();
  stores.clear();
}

void mbarrier_init(uint32_t address, uint32_t count, Site site) {
  if (count == 0) fail(site, "an mbarrier for nobody");
  std::memcpy(shared_bytes(address, 8, 8, site), &kCookie, 8);
  Mbarrier b;
  b.count = b.pending = count;
  b.initialiser = current->id;
  mbarriers[address] = b;
}

void mbarrier_publish() {
  for (auto& [address, b] : mbarriers) b.known = b.known || b.initialiser == current->id;
}

void mbarrier_arrive(uint32_t address, uint32_t bytes, Site site) {
  Mbarrier& b = at(address, site);
  if (b.pending == 0 && can_pass(b)) pass(b);
  if (b.pending == 0)
    fail(site, "arrives at an mbarrier that awaits bytes only: " + std::to_string(b.announced) + " were announced, " +
                   std::to_string(b.queued) + " are copied");
  b.announced += bytes;
  --b.pending;
  if (!can_pass(b)) return;
  b.queued ? changed() : pass(b);
}

void mbarrier_wait(uint32_t address, uint32_t parity, Site site) {
  const Waiting waiting{address, parity, site};
  wait_until(
      [](const void* argument) {
        const Waiting& w = *static_cast<const Waiting*>(argument);
        Mbarrier& b = at(w.address, w.site);
        if ((b.phase & 1) == w.parity && can_pass(b)) pass(b);
        return (b.phase & 1) != w.parity;
      },
      &waiting, site, "mbarrier.try_wait");
}

void tensor_load(const Box& box, uint32_t barrier, Site site) {
  Mbarrier& b = at(barrier, site);
  if (!b.known) fail(site, "a copy reports to an mbarrier that it cannot know: fence.mbarrier_init is missing");
  check_box(box, site);
  poison(box.shared, box.bytes());
  set_visible_to_async(box.shared, box.bytes());
  b.loads.push_back(box);
  b.queued += box.bytes();
  if (can_pass(b)) changed();
}

void tensor_store(const Box& box, Site site) {
  check_box(box, site);
  check_visible_to_async(box.shared, box.bytes(), site);
  Stores& own = stores[current->id];
  own.pending.push_back({box, own.groups, site});
}

void commit_stores() { ++stores[current->id].groups; }

void wait_for_stores(int groups_left, Site site, const char* what) {
  if (!synchronises(site, what)) return;
  Stores& own = stores[current->id];
  size_t kept = 0;
  for (const Store& store : own.pending) {
    if (store.group < own.groups - groups_left)
      move<false>(store.box);
    else
      own.pending[kept++] = store;
  }
  own.pending.resize(kept);
}

void check_no_stores() {
  const auto own = stores.find(current->id);
  if (own != stores.end() && !own->second.pending.empty())
    fail(own->second.pending[0].site, "returns while a tensor store still reads shared memory");
}

}  // namespace bigmodel::emulator
