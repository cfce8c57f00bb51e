// The one random number generator, for host and device: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random
// numbers: as easy as 1, 2, 3", SC 2011). A block of four words depends on (key, counter) only, so any thread of any
// machine can compute any part of the stream. Everything is static: a copy per translation unit (see half.h).
//
// How dropout uses it: element i takes 16 bits of the block with counter i / 8 and the seed as key; word (i % 8) / 2,
// its low half for even i and its high half for odd i.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define BIGMODEL_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define BIGMODEL_HOST_DEVICE inline
#endif

namespace bigmodel {

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;
constexpr int kPhiloxHalves = 8;  // 16-bit halves to a block: elements that share a counter

struct PhiloxBlock {
  uint32_t word[4];
};

static BIGMODEL_HOST_DEVICE PhiloxBlock philox_4x32(PhiloxBlock counter, uint32_t key0, uint32_t key1) {
  uint32_t c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(kPhiloxMultiplier0) * c0;
    const uint64_t p1 = static_cast<uint64_t>(kPhiloxMultiplier1) * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<uint32_t>(p0);
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

// The block for elements 8 * index to 8 * index + 7.
static BIGMODEL_HOST_DEVICE PhiloxBlock philox_block(uint64_t seed, uint64_t index) {
  return philox_4x32({{static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), 0, 0}},
                     static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

static BIGMODEL_HOST_DEVICE uint32_t philox_half(const PhiloxBlock& block, int i) {
  return (block.word[i / 2] >> (i % 2 * 16)) & 0xffffu;
}

}  // namespace bigmodel
