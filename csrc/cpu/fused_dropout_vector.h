// The fused dropout kernel over whichever vector type simd_<isa>.h has defined before this file is included; everything
// is in an anonymous namespace.
#pragma once

#include <cstring>

#include "../common/half.h"
#include "activation_vector.h"
#include "fused_dropout.h"

namespace bigmodel {
namespace {

struct Chunk {
  const void* x;
  const float* bias;  // may be null
  const void* other;  // may be null
  void* out;
};

template <DType D, Activation A, bool kBackward>
BIGMODEL_INLINE void run_chunk(const Chunk& chunk, const Keep& keep, Floats scale, bool stream) {
  constexpr int64_t kBytes = D == DType::f32 ? 4 : 2;
#pragma GCC unroll 4
  for (int v = 0; v < kDropoutChunk / kLanes; v += kWide) {
    const int64_t i = v * kLanes;
    Wide z = load_wide<D>(chunk.x, i);
    if (chunk.bias) z = z + load_wide<DType::f32>(chunk.bias, i);
    Wide y;
    if (kBackward) {
      const Wide other = load_wide<D>(chunk.other, i);
      y = A == Activation::none ? other : other * slope_wide<A>(z);
      y = each([&](int j) { return choose(keep.vector(v + j), y.v[j] * scale, set(0.0f)); });
    } else {
      y = activate_wide<A>(z);
      y = each([&](int j) { return y.v[j] * scale; });
      if (chunk.other) {
        const Wide other = load_wide<D>(chunk.other, i);
        y = each([&](int j) { return add_where(keep.vector(v + j), y.v[j], other.v[j]); });
      } else {
        y = each([&](int j) { return choose(keep.vector(v + j), y.v[j], set(0.0f)); });
      }
    }
    store_wide<D>(static_cast<char*>(chunk.out) + i * kBytes, y.v, stream);
  }
}

// 64 bias values from `column` on, starting again at the end of the row.
template <DType D>
const float* bias_chunk(const DropoutArgs& a, int64_t column, float* space) {
  const bool wraps = column + kDropoutChunk > a.features;
  if (a.bias_dtype == DType::f32) {
    const float* bias = static_cast<const float*>(a.bias);
    if (!wraps) return bias + column;
    for (int64_t j = 0; j < kDropoutChunk; ++j) {
      space[j] = bias[column];
      if (++column == a.features) column = 0;
    }
    return space;
  }
  const uint16_t* bias = static_cast<const uint16_t*>(a.bias);
  if (!wraps) {
    for (int64_t j = 0; j < kDropoutChunk; j += kWideLanes)
      store_wide<DType::f32>(space + j, load_wide<D>(bias + column, j).v, false);
    return space;
  }
  for (int64_t j = 0; j < kDropoutChunk; ++j) {
    space[j] = D == DType::bf16 ? bf16_to_float(bias[column]) : f16_to_float(bias[column]);
    if (++column == a.features) column = 0;
  }
  return space;
}

// The masks of the chunks of one run, computed a few at a time.
class Masks {
 public:
  explicit Masks(const DropoutArgs& a) : mask_(a.seed ? *a.seed : 0, a.threshold), random_(a.seed) {
    for (Keep& keep : keeps_) keep = keep_all();
  }

  // The mask of the chunk at `block`; the next call, if any, is for the chunk after it, of `left` up to the run's end.
  const Keep& next(uint64_t block, int64_t left) {
    if (!random_) return keeps_[0];
    if (held_ == used_) {
      used_ = 0;
      held_ = left >= kTogether ? kTogether : 1;
      if (held_ == kTogether)
        mask_.at<kTogether>(block, keeps_);
      else
        mask_.at<1>(block, keeps_);
    }
    return keeps_[used_++];
  }

 private:
  static constexpr int kTogether = 4;
  DropoutMask mask_;
  bool random_;
  int held_ = 0, used_ = 0;
  Keep keeps_[kTogether];
};

// Part of a chunk, elements [first, last) of it, by way of a full chunk's space.
template <DType D, Activation A, bool kBackward>
void run_part(const Chunk& chunk, int64_t first, int64_t last, const Keep& keep, Floats scale) {
  constexpr int64_t kBytes = D == DType::f32 ? 4 : 2;
  alignas(64) char x[kDropoutChunk * kBytes] = {}, other[kDropoutChunk * kBytes] = {}, out[kDropoutChunk * kBytes];
  const size_t at = static_cast<size_t>(first * kBytes), bytes = static_cast<size_t>((last - first) * kBytes);
  std::memcpy(x + at, static_cast<const char*>(chunk.x) + at, bytes);
  if (chunk.other) std::memcpy(other + at, static_cast<const char*>(chunk.other) + at, bytes);
  run_chunk<D, A, kBackward>({x, chunk.bias, chunk.other ? other : nullptr, out}, keep, scale, false);
  std::memcpy(static_cast<char*>(chunk.out) + at, out + at, bytes);
}

template <DType D, Activation A, bool kBackward>
void dropout_kernel(const DropoutArgs& a, int64_t begin, int64_t end, bool stream) {
  constexpr int64_t kBytes = D == DType::f32 ? 4 : 2;
  Masks masks(a);
  const Floats scale = set(a.scale);
  alignas(64) float bias_space[kDropoutChunk];
  int64_t i = begin / kDropoutChunk * kDropoutChunk, column = i % a.features;
  for (; i < end; i += kDropoutChunk) {
    const Keep& keep = masks.next(a.first_block + static_cast<uint64_t>(i / kPhiloxHalves), (end - i) / kDropoutChunk);
    Chunk chunk{static_cast<const char*>(a.x) + i * kBytes, nullptr, nullptr, static_cast<char*>(a.out) + i * kBytes};
    if (a.other) chunk.other = static_cast<const char*>(a.other) + i * kBytes;
    if (a.bias) {
      chunk.bias = bias_chunk<D>(a, column, bias_space);
      column += kDropoutChunk;
      while (column >= a.features) column -= a.features;
    }
    if (i >= begin && end - i >= kDropoutChunk)
      run_chunk<D, A, kBackward>(chunk, keep, scale, stream);
    else
      run_part<D, A, kBackward>(chunk, i < begin ? begin - i : 0, end - i < kDropoutChunk ? end - i : kDropoutChunk,
                                keep, scale);
  }
  if (stream) _mm_sfence();
}

template <DType D, bool kBackward>
void dropout_activation(const DropoutArgs& a, int64_t begin, int64_t end, bool stream) {
  switch (a.activation) {
    case Activation::none:
      return dropout_kernel<D, Activation::none, kBackward>(a, begin, end, stream);
    case Activation::relu:
      return dropout_kernel<D, Activation::relu, kBackward>(a, begin, end, stream);
    case Activation::leaky_relu:
      return dropout_kernel<D, Activation::leaky_relu, kBackward>(a, begin, end, stream);
    case Activation::gelu:
      return dropout_kernel<D, Activation::gelu, kBackward>(a, begin, end, stream);
    case Activation::silu:
      return dropout_kernel<D, Activation::silu, kBackward>(a, begin, end, stream);
    case Activation::sigmoid:
      return dropout_kernel<D, Activation::sigmoid, kBackward>(a, begin, end, stream);
    case Activation::tanh:
      return dropout_kernel<D, Activation::tanh, kBackward>(a, begin, end, stream);
    case Activation::softplus:
      return dropout_kernel<D, Activation::softplus, kBackward>(a, begin, end, stream);
  }
}

template <bool kBackward>
void dropout_dtype(const DropoutArgs& a, int64_t begin, int64_t end, bool stream) {
  if (a.dtype == DType::f32) return dropout_activation<DType::f32, kBackward>(a, begin, end, stream);
  if (a.dtype == DType::bf16) return dropout_activation<DType::bf16, kBackward>(a, begin, end, stream);
  dropout_activation<DType::f16, kBackward>(a, begin, end, stream);
}

}  // namespace
}  // namespace bigmodel
