// A unit (sparse_bits.h) on its way through shared memory: copied by a warp in 16-byte pieces, then found by its lanes.
#pragma once

#include "elements.h"
#include "ptx_async.h"
#include "sparse_bits.h"

namespace bigmodel {
namespace {

template <typename T>
struct alignas(16) UnitStage {
  static constexpr int kPiece = 16 / sizeof(T), kPieces = kUnit / kPiece + 1;  // one more: values begin anywhere
  static_assert(kPieces < 32, "A lane copies one piece, and the last lane the mask.");
  uint32_t mask[kUnitWords];
  T values[kPieces * kPiece];
};

// Where a unit's values are, from the aligned base of BitsArgs on.
struct UnitValues {
  uint32_t first, counts;
};

// Of the unit that lane `source` holds.
__device__ __forceinline__ UnitValues unit_values(const BitsArgs& a, uint2 held, int source) {
  return {__shfl_sync(0xffffffffu, held.x, source) + a.skip, __shfl_sync(0xffffffffu, held.y, source)};
}

// Each lane asks for its piece; the caller commits and waits. A unit that does not exist has a mask of zeros.
template <typename T>
__device__ __forceinline__ void copy_unit(const BitsArgs& a, int64_t unit, bool exists, UnitValues v, int lane,
                                          UnitStage<T>& to) {
  constexpr uint32_t kPiece = UnitStage<T>::kPiece;
  const uint32_t count = v.counts >> 24, from = v.first / kPiece * kPiece + lane * kPiece;
  if (from < v.first + count) {
    const int64_t left = (a.stored - from) * static_cast<int64_t>(sizeof(T));
    ptx::copy_async_16(ptx::shared_address(to.values + lane * kPiece), static_cast<const T*>(a.values) + from,
                       left < 16 ? static_cast<int>(left) : 16);
  }
  if (lane == 31) ptx::copy_async_16(ptx::shared_address(to.mask), a.masks + (exists ? unit : 0), exists ? 16 : 0);
}

// Columns 4 lane to 4 lane + 3 of a unit: bit j of `stored` says whether the j-th is; `first` is the place of the first
// stored one's value.
struct FourColumns {
  uint32_t stored, first;
};

template <typename T>
__device__ __forceinline__ FourColumns four_columns(const UnitStage<T>& stage, UnitValues v, int lane) {
  const int word = lane / 8, bit = lane % 8 * 4;
  const uint32_t mask = stage.mask[word];
  const uint32_t skipped = before_word(v.counts, word) + __popc(mask & below(bit));
  return {mask >> bit & 15, v.first % UnitStage<T>::kPiece + skipped};
}

}  // namespace
}  // namespace bigmodel
