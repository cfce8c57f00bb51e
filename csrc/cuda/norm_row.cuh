// A row of a tensor in a group of warps' registers. A warp takes tiles of 256 consecutive elements, tile after tile of
// the group; lane l has the mask of elements 8 l to 8 l + 7 of its tile. If everything is aligned (kVector), memory
// moves in 16-byte pieces, lane after lane: in 16-bit dtypes a piece is what the lane has the mask of; a float32 tile
// is two pieces, whose masks come from the lanes that have them. Else a lane moves its eight elements one by one, and
// its mask is cut from two Philox blocks.
#pragma once

#include "elements.cuh"

namespace bigmodel {

namespace {

constexpr int kWarp = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

template <DType D, bool kVector>
struct Piece {
  using T = typename ElementOf<D>::type;
  static constexpr int kSize = kVector ? 16 / sizeof(T) : kPhiloxHalves;
  static constexpr int kCount = kPhiloxHalves / kSize;  // to a tile

  // The first column of piece s of a tile.
  static __device__ __forceinline__ int column(int tile, int s) {
    return tile * kWarp * kPhiloxHalves + (s * kWarp + static_cast<int>(threadIdx.x) % kWarp) * kSize;
  }
  // Whether element j of the piece is in the row. A vector is in or out as a whole.
  static __device__ __forceinline__ bool inside(int column, int j, int features) {
    return (kVector ? column : column + j) < features;
  }
  // Elements outside the row are 0. S is the row's type: T, or float for parameters.
  template <typename S = T>
  static __device__ __forceinline__ void load(const void* row, int column, int features, float (&v)[kSize]) {
    const S* p = static_cast<const S*>(row) + column;
#pragma unroll
    for (int j = 0; j < kSize; ++j) v[j] = !kVector && column + j < features ? to_float(p[j]) : 0.0f;
    if constexpr (kVector)
      if (column < features) load_vector(p, v);
  }
  static __device__ __forceinline__ void load_parameters(const void* p, DType dtype, int column, int features,
                                                         float (&v)[kSize]) {
    if (dtype == DType::f32)
      load<float>(p, column, features, v);
    else
      load<T>(p, column, features, v);
  }
  // The same in two steps: the first starts the loads, the second has their elements. What is not a vector is loaded
  // late: held as floats from early on it would cost registers that there are not.
  struct Early {
    uint4 bits;
  };
  static __device__ __forceinline__ Early load_early(const void* row, int column, int features) {
    Early early = {};
    if (kVector && column < features)
      early.bits = __ldg(reinterpret_cast<const uint4*>(static_cast<const T*>(row) + column));
    return early;
  }
  static __device__ __forceinline__ void load_late(const Early& early, const void* row, int column, int features,
                                                   float (&v)[kSize]) {
    if constexpr (kVector)
      widen(early.bits, static_cast<const T*>(row), v);
    else
      load(row, column, features, v);
  }
  // Rounds v to what it stores.
  static __device__ __forceinline__ void store(void* row, int column, int features, float (&v)[kSize]) {
    T* p = static_cast<T*>(row) + column;
    if constexpr (kVector) {
      if (column < features) store_vector(p, v);
    } else {
#pragma unroll
      for (int j = 0; j < kSize; ++j)
        if (column + j < features) from_float(v[j], p[j]);
    }
    round(v);
  }
  static __device__ __forceinline__ void round(float (&v)[kSize]) {
#pragma unroll
    for (int j = 0; j < kSize; ++j) {
      T rounded;
      from_float(v[j], rounded);
      v[j] = to_float(rounded);
    }
  }
};

// The masks of a lane's pieces of a tile; `first` is the index of the row's first element. All lanes take part.
template <DType D, bool kVector>
__device__ __forceinline__ void keep_of_tile(const DropoutArgs& a, uint64_t seed, int64_t first, int tile,
                                             uint32_t (&keep)[Piece<D, kVector>::kCount]) {
  using P = Piece<D, kVector>;
  const int lane = threadIdx.x % kWarp;
  uint32_t own = 0xffu;
  if (a.seed) {
    const int64_t run = first + tile * kWarp * kPhiloxHalves + lane * kPhiloxHalves;
    const uint64_t block = a.first_block + run / kPhiloxHalves;
    const int shift = static_cast<int>(run % kPhiloxHalves);
    own = 0;
#pragma unroll 1  // side by side, two blocks would take registers that a backward pass does not have
    for (int i = 0; i < (kVector || shift == 0 ? 1 : 2); ++i)
      own |= keep_bits(seed, block + i, a.threshold) << (i * kPhiloxHalves);
    own >>= shift;
  }
#pragma unroll
  for (int s = 0; s < P::kCount; ++s) {
    keep[s] = own;
    if (P::kCount == 2) keep[s] = __shfl_sync(kAllLanes, own, s * (kWarp / 2) + lane / 2) >> (lane % 2 * P::kSize);
  }
}

__device__ __forceinline__ float sum_of_warp(float v) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) v += __shfl_xor_sync(kAllLanes, v, step);
  return v;
}

}  // namespace
}  // namespace bigmodel
