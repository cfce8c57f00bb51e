// Twins of csrc/cuda/ptx.h, which documents them.
#pragma once

#include "../common/half.h"
#include "banks.h"
#include "builtins.h"
#include "shared.h"

namespace bigmodel::ptx {

using emulator::here;
using emulator::Site;

inline uint16_t f32_to_bf16(float v) {  // the instruction's NaN is 0x7fff, whatever the sign
  return std::isnan(v) ? uint16_t{0x7fff} : float_to_bf16(v);
}
inline float bf16_to_f32(uint16_t h) { return bf16_to_float(h); }
inline uint16_t f32_to_f16(float v) { return std::isnan(v) ? uint16_t{0x7fff} : float_to_f16(v); }
inline float f16_to_f32(uint16_t h) { return f16_to_float(h); }

inline uint32_t f32_to_bf16x2(float low, float high) {
  return f32_to_bf16(low) | static_cast<uint32_t>(f32_to_bf16(high)) << 16;
}
inline uint32_t f32_to_f16x2(float low, float high) {
  return f32_to_f16(low) | static_cast<uint32_t>(f32_to_f16(high)) << 16;
}

inline int32_t f32_to_s8(float v) {
  return std::isnan(v) ? 0 : static_cast<int32_t>(std::nearbyint(std::min(std::max(v, -128.0f), 127.0f)));
}

template <typename T>
inline T* aligned_to(const void* p, size_t bytes, Site site) {
  if (reinterpret_cast<uintptr_t>(p) % bytes)
    emulator::fail(site, "an access to an address that is not a multiple of " + std::to_string(bytes));
  return static_cast<T*>(const_cast<void*>(p));
}

inline void store_16(void* p, uint32_t a, uint32_t b, uint32_t c, uint32_t d, Site site = here()) {
  *aligned_to<uint4>(p, 16, site) = {a, b, c, d};
}
inline uint4 load_streaming_16(const void* p, Site site = here()) { return *aligned_to<const uint4>(p, 16, site); }
inline uint2 load_streaming_8(const void* p, Site site = here()) { return *aligned_to<const uint2>(p, 8, site); }

inline uint32_t shared_address(const void* p, Site site = here()) { return emulator::shared_address(p, site); }

inline uint4 load_shared_16(uint32_t address, Site site = here()) {
  emulator::count_shared_access(address, site);
  uint4 v;
  std::memcpy(&v, emulator::written_shared_bytes(address, 16, 16, site), 16);
  return v;
}
inline void store_shared_16(uint32_t address, uint4 v, Site site = here()) {
  emulator::count_shared_access(address, site);
  std::memcpy(emulator::shared_bytes(address, 16, 16, site), &v, 16);
}

inline void add_global(float* p, float v) { *p += v; }
inline void add_global(int32_t* p, int32_t v) { *p += v; }

inline void barrier_sync(int id, int threads, Site site = here()) {
  emulator::barrier_sync(id, threads, site, "bar.sync");
}
inline void barrier_arrive(int id, int threads, Site site = here()) {
  emulator::barrier_arrive(id, threads, site, "bar.arrive");
}

}  // namespace bigmodel::ptx
