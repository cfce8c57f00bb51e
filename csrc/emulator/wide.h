// Operands of tensor-core products, widened to what is multiplied: int16 and float, in which products are exact.
#pragma once

#include <cstdint>

#include "../common/half.h"
#include "matrix.h"

namespace bigmodel::emulator {

template <Element kElement>
struct Wide {
  using Operand = float;
  using Sum = float;
  static constexpr int kPerUnit = 2;
  static void widen(uint32_t unit, float* out) {
    for (int i = 0; i < 2; ++i) {
      const uint16_t half = static_cast<uint16_t>(unit >> (16 * i));
      out[i] = kElement == Element::bf16 ? bf16_to_float(half) : f16_to_float(half);
    }
  }
};

template <>
struct Wide<Element::s8> {
  using Operand = int16_t;
  using Sum = int32_t;
  static constexpr int kPerUnit = 4;
  static void widen(uint32_t unit, int16_t* out) {
    for (int i = 0; i < 4; ++i) out[i] = static_cast<int8_t>(unit >> (8 * i));
  }
};

}  // namespace bigmodel::emulator
