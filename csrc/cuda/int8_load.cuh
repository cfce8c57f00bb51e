// 16 bytes of a row of int8, of which `valid` exist (any number: none if it is not positive); zeros for the others.
// kWidth is what the address is a multiple of, 16, 4 or 1, and so the bytes of a load. Rows end at multiples of it:
// what is one load is wholly in the row or behind it.
#pragma once

#include "device.h"
#include "ptx.h"
#include "ptx_async.h"

namespace bigmodel {
namespace {

// To registers. kStream: read once, past the L1 cache.
template <int kWidth, bool kStream>
__device__ __forceinline__ uint4 load_bytes(const int8_t* p, int valid) {
  uint32_t word[4] = {};
  if constexpr (kWidth == 16) {
    if (valid <= 0) return make_uint4(0, 0, 0, 0);
    return kStream ? ptx::load_streaming_16(p) : __ldg(reinterpret_cast<const uint4*>(p));
  } else if constexpr (kWidth == 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (4 * i < valid) word[i] = __ldg(reinterpret_cast<const uint32_t*>(p) + i);
  } else {
#pragma unroll
    for (int i = 0; i < 16; ++i)
      if (i < valid) word[i / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(p[i])) << (i % 4 * 8);
  }
  return make_uint4(word[0], word[1], word[2], word[3]);
}

// To shared memory; there after the thread's wait for its asynchronous copies and a barrier.
template <int kWidth>
__device__ __forceinline__ void copy_bytes(uint32_t to, const int8_t* p, int valid) {
  if constexpr (kWidth == 16) {
    ptx::copy_async_16(to, p, valid > 0 ? 16 : 0);
  } else if constexpr (kWidth == 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) ptx::copy_async_small<4>(to + 4 * i, p + 4 * i, valid > 4 * i ? 4 : 0);
  } else {
    ptx::store_shared_16(to, load_bytes<1, false>(p, valid));
  }
}

}  // namespace
}  // namespace bigmodel
