// CUDA's builtin variables and functions.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "block.h"
#include "types.h"

#define threadIdx (::bigmodel::emulator::current->index)
#define blockIdx (::bigmodel::emulator::block_index)
#define blockDim (::bigmodel::emulator::block_size)
#define gridDim (::bigmodel::emulator::grid_size)
constexpr int warpSize = 32;

using std::max;
using std::min;

namespace bigmodel::emulator {

template <typename To, typename From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "The bits of one are the bits of the other.");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

constexpr const char kSyncThreads[] = "__syncthreads";

// What each lane brings to a shuffle or a vote and takes from it: 8 bytes, and where to take them from.
struct Exchange {
  uint64_t value;
  int source;
};
void shuffle(Exchange& own, uint32_t mask, Site site, const char* what);  // value becomes the source lane's
enum class Vote { ballot, add, max_signed, min_signed, max_unsigned, min_unsigned, bit_and, bit_or, bit_xor };
uint32_t vote(uint32_t value, Vote kind, uint32_t mask, Site site, const char* what);
uint32_t match_any(uint64_t value, uint32_t mask, Site site);
int vote_of_block(int predicate, Vote kind, Site site);  // __syncthreads_or and its kin; ballot counts

template <typename T>
inline T shuffle_value(T value, int source, uint32_t mask, Site site, const char* what) {
  static_assert(sizeof(T) <= 8, "A shuffle moves 4 or 8 bytes.");
  Exchange own{0, source};
  std::memcpy(&own.value, &value, sizeof(T));
  shuffle(own, mask, site, what);
  std::memcpy(&value, &own.value, sizeof(T));
  return value;
}

}  // namespace bigmodel::emulator

namespace bigmodel_cuda = ::bigmodel::emulator;

inline void __syncthreads(bigmodel_cuda::Site site = bigmodel_cuda::here()) {
  bigmodel_cuda::barrier_sync(0, 0, site, bigmodel_cuda::kSyncThreads);
}
inline int __syncthreads_or(int p, bigmodel_cuda::Site site = bigmodel_cuda::here()) {
  return bigmodel_cuda::vote_of_block(p, bigmodel_cuda::Vote::bit_or, site);
}
inline int __syncthreads_and(int p, bigmodel_cuda::Site site = bigmodel_cuda::here()) {
  return bigmodel_cuda::vote_of_block(p, bigmodel_cuda::Vote::bit_and, site);
}
inline int __syncthreads_count(int p, bigmodel_cuda::Site site = bigmodel_cuda::here()) {
  return bigmodel_cuda::vote_of_block(p, bigmodel_cuda::Vote::add, site);
}
void __syncwarp(uint32_t mask = 0xffffffffu, bigmodel_cuda::Site site = bigmodel_cuda::here());
inline void __threadfence() {}
inline void __threadfence_block() {}

template <typename T>
inline T __shfl_sync(uint32_t mask, T v, int source, int width = 32, bigmodel_cuda::Site site = bigmodel_cuda::here()) {
  const int lane = bigmodel_cuda::current->lane;
  return bigmodel_cuda::shuffle_value(v, (lane & ~(width - 1)) | (source & (width - 1)), mask, site, "__shfl_sync");
}
template <typename T>
inline T __shfl_xor_sync(uint32_t mask, T v, int bits, int width = 32,
                         bigmodel_cuda::Site site = bigmodel_cuda::here()) {
  const int lane = bigmodel_cuda::current->lane, source = lane ^ bits;
  const bool inside = (source & ~(width - 1)) <= (lane & ~(width - 1));
  return bigmodel_cuda::shuffle_value(v, inside ? source : lane, mask, site, "__shfl_xor_sync");
}
template <typename T>
inline T __shfl_down_sync(uint32_t mask, T v, unsigned delta, int width = 32,
                          bigmodel_cuda::Site site = bigmodel_cuda::here()) {
  const int lane = bigmodel_cuda::current->lane, source = lane + static_cast<int>(delta);
  return bigmodel_cuda::shuffle_value(v, source / width == lane / width ? source : lane, mask, site,
                                      "__shfl_down_sync");
}
template <typename T>
inline T __shfl_up_sync(uint32_t mask, T v, unsigned delta, int width = 32,
                        bigmodel_cuda::Site site = bigmodel_cuda::here()) {
  const int lane = bigmodel_cuda::current->lane, source = lane - static_cast<int>(delta);
  return bigmodel_cuda::shuffle_value(v, source >= (lane & ~(width - 1)) ? source : lane, mask, site, "__shfl_up_sync");
}

inline uint32_t __ballot_sync(uint32_t mask, int p, bigmodel_cuda::Site site = bigmodel_cuda::here()) {
  return bigmodel_cuda::vote(p != 0, bigmodel_cuda::Vote::ballot, mask, site, "__ballot_sync");
}
inline int __any_sync(uint32_t mask, int p, bigmodel_cuda::Site site = bigmodel_cuda::here()) {
  return bigmodel_cuda::vote(p != 0, bigmodel_cuda::Vote::ballot, mask, site, "__any_sync") != 0;
}
inline int __all_sync(uint32_t mask, int p, bigmodel_cuda::Site site = bigmodel_cuda::here()) {
  return bigmodel_cuda::vote(p != 0, bigmodel_cuda::Vote::ballot, mask, site, "__all_sync") == mask;
}
template <typename T>
inline uint32_t __match_any_sync(uint32_t mask, T v, bigmodel_cuda::Site site = bigmodel_cuda::here()) {
  uint64_t bits = 0;
  std::memcpy(&bits, &v, sizeof(T));
  return bigmodel_cuda::match_any(bits, mask, site);
}

#define BIGMODEL_REDUCE(name, kind_signed, kind_unsigned)                                                    \
  inline int name(uint32_t mask, int v, bigmodel_cuda::Site site = bigmodel_cuda::here()) {                  \
    return static_cast<int>(                                                                                 \
        bigmodel_cuda::vote(static_cast<uint32_t>(v), bigmodel_cuda::Vote::kind_signed, mask, site, #name)); \
  }                                                                                                          \
  inline unsigned name(uint32_t mask, unsigned v, bigmodel_cuda::Site site = bigmodel_cuda::here()) {        \
    return bigmodel_cuda::vote(v, bigmodel_cuda::Vote::kind_unsigned, mask, site, #name);                    \
  }
BIGMODEL_REDUCE(__reduce_add_sync, add, add)
BIGMODEL_REDUCE(__reduce_max_sync, max_signed, max_unsigned)
BIGMODEL_REDUCE(__reduce_min_sync, min_signed, min_unsigned)
BIGMODEL_REDUCE(__reduce_and_sync, bit_and, bit_and)
BIGMODEL_REDUCE(__reduce_or_sync, bit_or, bit_or)
BIGMODEL_REDUCE(__reduce_xor_sync, bit_xor, bit_xor)
#undef BIGMODEL_REDUCE

template <typename T>
inline T __ldg(const T* p, bigmodel_cuda::Site site = bigmodel_cuda::here()) {
  if (reinterpret_cast<uintptr_t>(p) % alignof(T))
    bigmodel_cuda::fail(site, "an access to an address that is not a multiple of " + std::to_string(alignof(T)));
  return *p;
}
inline float __uint_as_float(unsigned v) { return bigmodel_cuda::bits_as<float>(v); }
inline unsigned __float_as_uint(float v) { return bigmodel_cuda::bits_as<unsigned>(v); }
inline float __int_as_float(int v) { return bigmodel_cuda::bits_as<float>(v); }
inline int __float_as_int(float v) { return bigmodel_cuda::bits_as<int>(v); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __clz(int v) { return v ? __builtin_clz(static_cast<unsigned>(v)) : 32; }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
inline unsigned __brev(unsigned v) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (v >> i & 1) << (31 - i);
  return r;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>(((uint64_t{high} << 32) | low) >> (shift & 31));
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((((uint64_t{high} << 32) | low) << (shift & 31)) >> 32);
}
// The selector's nibbles choose among eight bytes; a nibble's high bit repeats the byte's sign.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = (uint64_t{y} << 32) | x;
  unsigned r = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned nibble = selector >> (4 * i) & 15, byte = static_cast<unsigned>(bytes >> (8 * (nibble & 7))) & 255;
    r |= (nibble & 8 ? (byte & 128 ? 255u : 0u) : byte) << (8 * i);
  }
  return r;
}
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; ++i) c += static_cast<int8_t>(a >> (8 * i)) * static_cast<int8_t>(b >> (8 * i));
  return c;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 4; ++i) c += (a >> (8 * i) & 255) * (b >> (8 * i) & 255);
  return c;
}

inline int __float2int_rn(float v) {  // saturates; NaN gives 0
  if (std::isnan(v)) return 0;
  return v >= 0x1p31f ? INT32_MAX : v < -0x1p31f ? INT32_MIN : static_cast<int>(std::nearbyint(v));
}
inline float __int2float_rn(int v) { return static_cast<float>(v); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }
inline float __fsqrt_rn(float v) { return std::sqrt(v); }
inline float __frcp_rn(float v) { return 1.0f / v; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float v) { return std::exp(v); }
inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }

template <typename T>
inline T atomicAdd(T* p, T v) {
  const T before = *p;
  *p = before + v;
  return before;
}
template <typename T>
inline T atomicMax(T* p, T v) {
  const T before = *p;
  *p = std::max(before, v);
  return before;
}
template <typename T>
inline T atomicMin(T* p, T v) {
  const T before = *p;
  *p = std::min(before, v);
  return before;
}
template <typename T>
inline T atomicOr(T* p, T v) {
  const T before = *p;
  *p = before | v;
  return before;
}
template <typename T>
inline T atomicExch(T* p, T v) {
  const T before = *p;
  *p = v;
  return before;
}
template <typename T>
inline T atomicCAS(T* p, T expected, T v) {
  const T before = *p;
  if (before == expected) *p = v;
  return before;
}
