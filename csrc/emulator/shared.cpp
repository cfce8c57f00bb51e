#include "shared.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "block.h"
#include "sanitizer.h"

namespace bigmodel::emulator {

namespace {

constexpr size_t kArena = kSharedStart + kMaxShared + (64 << 10);  // room for the gaps between variables
constexpr uint32_t kGap = 128;

struct Variable {
  const void* tag;
  uint32_t start, end;
};

alignas(1024) char arena[kArena];
alignas(1024) char async_view[kArena];
alignas(1024) char pattern[kArena];
bool published = false;           // since the views were last made equal
std::vector<Variable> variables;  // the first is the dynamic memory; in order of addresses
uint32_t used = 0;                // up to the end of the last gap

// Halves 0xff81 to 0xfffe: NaN as bfloat16, float16 and (in pairs) float32.
void fill_pattern() {
  uint32_t state = 12345;
  for (size_t i = 0; i < kArena; i += 2) {
    state = state * 1664525u + 1013904223u;
    const uint16_t half = static_cast<uint16_t>(0xff81 + (state >> 16) % 126);
    std::memcpy(pattern + i, &half, 2);
  }
}

uint32_t round_up(size_t value, size_t multiple) {
  return static_cast<uint32_t>((value + multiple - 1) / multiple * multiple);
}

const Variable& variable_of(uint32_t address, size_t bytes, Site site) {
  for (const Variable& v : variables)
    if (address >= v.start && address + bytes <= v.end) return v;
  std::string list;
  for (const Variable& v : variables) list += " [" + std::to_string(v.start) + ", " + std::to_string(v.end) + ")";
  fail(site, "out of bounds: " + std::to_string(bytes) + " bytes at shared address " + std::to_string(address) +
                 "; variables lie at" + list);
}

void copy_variables(char* to, const char* from) {
  for (const Variable& v : variables) std::memcpy(to + v.start, from + v.start, v.end - v.start);
}

}  // namespace

void open_shared(size_t dynamic_bytes) {
  if (!pattern[0]) fill_pattern();
  allow(arena, kArena);
  std::memcpy(arena, pattern, kArena);
  variables.assign(1, {nullptr, kSharedStart, kSharedStart + static_cast<uint32_t>(dynamic_bytes)});
  used = round_up(variables[0].end, 16) + kGap;
  forbid(arena, kArena);
  allow(arena + kSharedStart, dynamic_bytes);
}

void start_shared() {
  copy_variables(arena, pattern);
  copy_variables(async_view, pattern);
  published = false;
}

void check_shared() {
  if (kSanitized) return;  // it was told of the gaps
  uint32_t gap = 0;
  for (size_t i = 0; i <= variables.size(); ++i) {
    const uint32_t end = i < variables.size() ? variables[i].start : used;
    if (std::memcmp(arena + gap, pattern + gap, end - gap) != 0) {
      while (arena[gap] == pattern[gap]) ++gap;
      throw std::runtime_error(report->kernel + ", block (" + std::to_string(block_index.x) + ", " +
                               std::to_string(block_index.y) + ", " + std::to_string(block_index.z) +
                               "): out of bounds: shared address " + std::to_string(gap) +
                               ", between the variables, was written");
    }
    if (i < variables.size()) gap = variables[i].end;
  }
}

char* dynamic_shared_memory() { return arena + kSharedStart; }

void* shared_variable(const void* tag, size_t bytes, size_t alignment, Site site) {
  for (const Variable& v : variables)
    if (v.tag == tag) return arena + v.start;
  const uint32_t start = round_up(used, std::max<size_t>(alignment, 16));
  const uint32_t end = start + static_cast<uint32_t>(bytes);
  if (round_up(end, 16) + kGap > kArena) fail(site, "more shared memory than a block can have");
  std::memcpy(async_view + start, pattern + start, bytes);
  allow(arena + start, bytes);
  used = round_up(end, 16) + kGap;
  variables.push_back({tag, start, end});
  return arena + start;
}

uint32_t shared_address(const void* pointer, Site site) {
  const char* p = static_cast<const char*>(pointer);
  if (p < arena || p > arena + used) fail(site, "a pointer that is not to shared memory");
  return static_cast<uint32_t>(p - arena);
}

char* shared_bytes(uint32_t address, size_t bytes, size_t alignment, Site site) {
  if (address % alignment)
    fail(site, "shared address " + std::to_string(address) + " is not a multiple of " + std::to_string(alignment));
  variable_of(address, bytes, site);
  return arena + address;
}

const char* written_shared_bytes(uint32_t address, size_t bytes, size_t alignment, Site site) {
  const char* p = shared_bytes(address, bytes, alignment, site);
  for (size_t i = 0; i + 8 <= bytes; i += 8)
    if (std::memcmp(p + i, pattern + address + i, 8) == 0)
      fail(site, "reads poison: shared address " + std::to_string(address + i) +
                     " has not been written, or is being written by an asynchronous copy");
  return p;
}

void poison(uint32_t address, size_t bytes) { std::memcpy(arena + address, pattern + address, bytes); }

void publish_to_async() { published = true; }

void check_visible_to_async(uint32_t address, size_t bytes, Site site) {
  variable_of(address, bytes, site);
  if (published) copy_variables(async_view, arena);
  published = false;
  if (std::memcmp(arena + address, async_view + address, bytes) != 0)
    fail(site, "an asynchronous read of shared address " + std::to_string(address) +
                   ", which was written without fence.proxy.async behind it");
}

void set_visible_to_async(uint32_t address, size_t bytes) { std::memcpy(async_view + address, arena + address, bytes); }

}  // namespace bigmodel::emulator
