#include "block.h"

#include <exception>
#include <mutex>
#include <random>
#include <stdexcept>

#include "async_copy.h"
#include "banks.h"
#include "fiber.h"
#include "shared.h"
#include "tensor_copy.h"
#include "warpgroup.h"

namespace bigmodel::emulator {

Thread* current = nullptr;
uint3 block_index;
dim3 grid_size, block_size;
LaunchReport* report = nullptr;

namespace {

struct Meeting {  // of lanes of a warp
  uint32_t mask = 0, arrived = 0;
  const char* what = nullptr;
  Site site;
  void* arguments[kLanes];
};

struct Warp {
  uint32_t all = 0, live = 0, ready = 0, polling = 0;
  Meeting meetings[kLanes];  // several may be under way, with different masks
};

struct Barrier {
  int arrived = 0, count = 0;
  uint32_t lanes[kMaxWarps] = {};    // that have arrived
  uint32_t waiting[kMaxWarps] = {};  // of those, the ones that wait
  Site sites[kMaxWarps], first;
};

// Everything about the block that runs.
struct Block {
  FiberStacks stacks;
  Fiber fibers[kMaxThreads], main = nullptr;
  Thread threads[kMaxThreads];
  AsyncCopies copies[kMaxThreads];
  Warp warps[kMaxWarps];
  Barrier barriers[kBarriers];
  uint32_t ready = 0;  // warps with a lane that can run
  int size = 0, live = 0;
  const std::function<void()>* body = nullptr;
  std::exception_ptr error;
  std::mt19937_64 random;
};

Block& block() {
  static Block* const instance = new Block;  // never destroyed: stacks stay mapped
  return *instance;
}

Warp& warp_of(const Thread& t) { return block().warps[t.warp]; }
uint32_t bit(int i) { return 1u << i; }
int lowest(uint32_t mask) { return __builtin_ctz(mask); }
int highest(uint32_t mask) { return 31 - __builtin_clz(mask); }

int any_of(uint32_t mask) {
  for (uint64_t skip = block().random() % __builtin_popcount(mask); skip > 0; --skip) mask &= mask - 1;
  return lowest(mask);
}

void make_ready(int warp, uint32_t lanes) {
  block().warps[warp].ready |= lanes;
  if (lanes) block().ready |= bit(warp);
}

void make_waiting(const Thread& t) {
  Warp& warp = warp_of(t);
  warp.ready &= ~bit(t.lane);
  if (!warp.ready) block().ready &= ~bit(t.warp);
}

// Who runs next. A warp that can run keeps running: the hardware may let it get that far ahead of the others.
Thread* choose() {
  Block& b = block();
  if (!b.ready) return nullptr;
  switch (settings().schedule) {
    case Schedule::ascending: {
      const int w = lowest(b.ready);
      return &b.threads[w * kLanes + lowest(b.warps[w].ready)];
    }
    case Schedule::descending: {
      const int w = highest(b.ready);
      return &b.threads[w * kLanes + highest(b.warps[w].ready)];
    }
    case Schedule::random:
      break;
  }
  const bool stay = current && (b.ready & bit(current->warp)) && b.random() % 8;
  const int w = stay ? current->warp : any_of(b.ready);
  return &b.threads[w * kLanes + any_of(b.warps[w].ready)];
}

void leave_to(Thread* next, Fiber& from) {
  Block& b = block();
  if (!next) return b.stacks.switch_to(from, FiberStacks::kNoStack, b.main);
  current = next;
  b.stacks.switch_to(from, static_cast<size_t>(next->id), b.fibers[next->id]);
}

// Lets others run until the current thread is ready again.
void suspend(const char* what, Site site) {
  Thread* self = current;
  self->waits = what;
  self->site = site;
  if (Thread* next = choose(); next != self) leave_to(next, block().fibers[self->id]);
  self->waits = nullptr;
}

void pass(Barrier& barrier) {
  for (int w = 0; w * kLanes < block().size; ++w) make_ready(w, barrier.waiting[w]);
  barrier = Barrier();
}

bool complete_if_all(Barrier& barrier) {
  if (barrier.arrived == 0 || barrier.arrived < (barrier.count ? barrier.count : block().live)) return false;
  if (barrier.count)
    for (int w = 0; w * kLanes < block().size; ++w)
      if (barrier.lanes[w] && barrier.lanes[w] != block().warps[w].all)
        fail(barrier.sites[w], "a named barrier was reached by a part of warp " + std::to_string(w) + " only");
  pass(barrier);
  return true;
}

void count_arrival(int id, int count, Site site) {
  if (id < 0 || id >= kBarriers) fail(site, "barrier " + std::to_string(id) + ": there are 16");
  if (count % kLanes) fail(site, "a barrier's count must be whole warps, got " + std::to_string(count));
  Barrier& barrier = block().barriers[id];
  const Thread& t = *current;
  if (!barrier.arrived) {
    barrier.count = count;
    barrier.first = site;
  }
  if (barrier.count != count)
    fail(site, "barrier " + std::to_string(id) + " with count " + std::to_string(count) + ", but " +
                   std::to_string(barrier.count) + " at " + to_string(barrier.first));
  if (barrier.lanes[t.warp] & bit(t.lane))
    fail(site, "arrives twice before barrier " + std::to_string(id) + " is passed");
  if (barrier.lanes[t.warp] && barrier.sites[t.warp].line != site.line)
    fail(site, "divergent barrier: other lanes of the warp wait at " + to_string(barrier.sites[t.warp]));
  barrier.sites[t.warp] = site;
  barrier.lanes[t.warp] |= bit(t.lane);
  ++barrier.arrived;
}

void finish_thread() {
  check_no_stores();
  Thread& t = *current;
  make_waiting(t);
  warp_of(t).live &= ~bit(t.lane);
  t.copies->clear();
  --block().live;
  complete_if_all(block().barriers[0]);
}

void thread_main() {
  block().stacks.entered();
  try {
    (*block().body)();
    finish_thread();
    leave_to(choose(), block().fibers[current->id]);
  } catch (...) {
    block().error = std::current_exception();
  }
  leave_to(nullptr, block().fibers[current->id]);
}

// The one under way with this mask, or one that is free.
Meeting& meeting_of(Warp& warp, uint32_t mask) {
  Meeting* unused = nullptr;
  for (Meeting& m : warp.meetings) {
    if (m.arrived && m.mask == mask) return m;
    if (!m.arrived && !unused) unused = &m;
    if (!m.what) break;  // never used, nor are those behind it
  }
  return *unused;
}

std::string name_of(const Thread& t) {
  return "thread (" + std::to_string(t.index.x) + ", " + std::to_string(t.index.y) + ", " + std::to_string(t.index.z) +
         ")";
}

std::string where() {
  return report->kernel + ", block (" + std::to_string(block_index.x) + ", " + std::to_string(block_index.y) + ", " +
         std::to_string(block_index.z) + ")";
}

// Nobody can run and not everybody has returned: who waits where, equal neighbours together.
[[noreturn]] void report_deadlock() {
  std::string list;
  const Thread* last = nullptr;
  int shown = 0;
  for (int i = 0; i < block().size && shown < 12; ++i) {
    const Thread& t = block().threads[i];
    const bool returned = !t.waits;
    if (last && last->waits == t.waits && last->site.line == t.site.line) continue;
    last = &t;
    ++shown;
    list += "\n  from " + name_of(t) + ": " + (returned ? "returned" : t.waits + (" at " + to_string(t.site)));
  }
  throw std::runtime_error(where() + ": deadlock: no thread can go on" + list);
}

void start_block(unsigned linear_threads) {
  Block& b = block();
  b.size = b.live = static_cast<int>(linear_threads);
  b.ready = 0;
  b.error = nullptr;
  for (Barrier& barrier : b.barriers) barrier = Barrier();
  for (int i = 0; i < b.size; ++i) {
    const unsigned u = static_cast<unsigned>(i);
    Thread& t = b.threads[i];
    t = Thread();
    t.index = {u % block_size.x, u / block_size.x % block_size.y, u / (block_size.x * block_size.y)};
    t.id = i;
    t.lane = i % kLanes;
    t.warp = i / kLanes;
    t.copies = &b.copies[i];
    t.copies->clear();
    b.fibers[i] = b.stacks.start(static_cast<size_t>(i), thread_main);
    if (t.lane == 0) b.warps[t.warp] = Warp();
    b.warps[t.warp].all = b.warps[t.warp].live |= bit(t.lane);
  }
  for (int w = 0; w * kLanes < b.size; ++w) make_ready(w, b.warps[w].live);
}

void run_block() {
  Block& b = block();
  start_shared();
  start_banks();
  start_mbarriers();
  start_warpgroups();
  current = nullptr;
  leave_to(choose(), b.main);
  if (b.error) std::rethrow_exception(b.error);
  if (b.live) report_deadlock();
  check_shared();
}

}  // namespace

void fail(Site site, const std::string& what, const Thread* thread) {
  std::string line = where() + ", " + name_of(thread ? *thread : *current);
  if (site.file) line += " at " + to_string(site);
  throw std::runtime_error(line + ": " + what);
}

void barrier_sync(int id, int count, Site site, const char* what) {
  if (!synchronises(site, what)) return;
  count_arrival(id, count, site);
  Barrier& barrier = block().barriers[id];
  const Thread& t = *current;
  if (!count && (barrier.first.line != site.line || to_string(barrier.first) != to_string(site)))
    fail(site, "divergent barrier: other threads of the block wait at " + to_string(barrier.first));
  if (complete_if_all(barrier)) return;
  barrier.waiting[t.warp] |= bit(t.lane);
  make_waiting(t);
  suspend(what, site);
}

void barrier_arrive(int id, int count, Site site, const char* what) {
  if (!synchronises(site, what)) return;
  count_arrival(id, count, site);
  complete_if_all(block().barriers[id]);
}

void wait_until(bool (*ready)(const void*), const void* argument, Site site, const char* what) {
  while (!ready(argument)) {
    warp_of(*current).polling |= bit(current->lane);
    make_waiting(*current);
    suspend(what, site);
  }
}

void changed() {
  for (int w = 0; w * kLanes < block().size; ++w) {
    make_ready(w, block().warps[w].polling);
    block().warps[w].polling = 0;
  }
}

const Thread& lane_of_warp(int lane) { return block().threads[current->warp * kLanes + lane]; }

void meet(const char* what, uint32_t mask, void* argument, Complete complete, Site site) {
  const Thread& t = *current;
  Warp& warp = warp_of(t);
  if (!(mask >> t.lane & 1)) fail(site, std::string(what) + ": the mask lacks the lane itself");
  Meeting& meeting = meeting_of(warp, mask);
  if (!meeting.arrived) {
    meeting.mask = mask;
    meeting.what = what;
    meeting.site = site;
  }
  if (meeting.what != what || meeting.site.line != site.line)
    fail(site, std::string("divergence: ") + what + " meets " + meeting.what + " at " + to_string(meeting.site));
  meeting.arguments[t.lane] = argument;
  meeting.arrived |= bit(t.lane);
  if (meeting.arrived == mask) {
    meeting.arrived = 0;
    complete(meeting.arguments, mask, site);
    make_ready(t.warp, mask);
    return;
  }
  make_waiting(t);
  suspend(what, site);
}

void run_grid(const char* kernel, dim3 grid, dim3 threads, size_t shared_bytes, const std::function<void()>& body) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  if (reports().size() >= 1000) reports().erase(reports().begin());
  reports().emplace_back();
  report = &reports().back();
  report->kernel = kernel;
  report->grid = grid_size = grid;
  report->block = block_size = threads;
  report->shared_bytes = shared_bytes;
  const uint64_t size = uint64_t{threads.x} * threads.y * threads.z;
  if (size == 0 || size > kMaxThreads || grid.x * uint64_t{grid.y} * grid.z == 0 || grid.y > 65535 || grid.z > 65535 ||
      shared_bytes > kMaxShared)
    throw std::runtime_error(std::string(kernel) + ": CUDA: invalid configuration: block of " + std::to_string(size) +
                             " threads, " + std::to_string(shared_bytes) + " bytes of shared memory");
  start_sites();
  block().body = &body;
  block().random.seed(settings().seed);
  open_shared(shared_bytes);
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        block_index = {x, y, z};
        start_block(static_cast<unsigned>(size));
        run_block();
      }
}

}  // namespace bigmodel::emulator
