// Twins of csrc/cuda/ptx_float16.h, which documents them.
#pragma once

#include "ptx.h"

namespace bigmodel::ptx {

inline uint32_t sub_f16x2(uint32_t a, uint32_t b) {
  const auto half = [](uint32_t v) { return f16_to_f32(static_cast<uint16_t>(v)); };
  return f32_to_f16x2(half(a) - half(b), half(a >> 16) - half(b >> 16));
}

inline uint32_t sub_bf16x2(uint32_t a, uint32_t b) {
  const auto half = [](uint32_t v) { return bf16_to_f32(static_cast<uint16_t>(v)); };
  return f32_to_bf16x2(half(a) - half(b), half(a >> 16) - half(b >> 16));
}

}  // namespace bigmodel::ptx
