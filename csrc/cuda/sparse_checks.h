// What the launchers of the sparse products ask of their tensors; Python's checks have named the user's errors before.
#pragma once

#include <initializer_list>
#include <type_traits>

#include "../common/check.h"
#include "guard.h"

namespace bigmodel {

// Rows of activations, of one or more whole 16-byte pieces.
inline void check_piecewise_rows(const View& v, const char* name) {
  check_float(v, name);
  check_ndim(v, name, 2);
  check_contiguous(v, name);
  BIGMODEL_CHECK(v.sizes[1] * element_size(v.dtype) % 16 == 0 && reinterpret_cast<uintptr_t>(v.data) % 16 == 0, name,
                 "'s rows must begin at multiples of 16 bytes, got ", shape_string(v));
}

inline void check_whole(const View& v, const char* name, DType dtype, std::initializer_list<int64_t> shape) {
  check_dtype(v, name, dtype);
  check_shape(v, name, shape);
  check_contiguous(v, name);
  BIGMODEL_CHECK(v.numel() == 0 || reinterpret_cast<uintptr_t>(v.data) % 16 == 0, name,
                 " must begin at a multiple of 16 bytes");
}

inline const float* bias_of(const View* bias, int64_t n) {
  if (!bias) return nullptr;
  check_dtype(*bias, "bias", DType::f32);
  check_shape(*bias, "bias", {n});
  check_contiguous(*bias, "bias");
  return bias->as<float>();
}

inline int64_t pieces_of(int64_t size, int64_t piece) { return (size + piece - 1) / piece; }

// Calls run(std::integral_constant<DType, D>) for the dtype D.
template <typename Run>
void for_float_dtype(DType dtype, Run&& run) {
  if (dtype == DType::f32) return run(std::integral_constant<DType, DType::f32>());
  if (dtype == DType::bf16) return run(std::integral_constant<DType, DType::bf16>());
  run(std::integral_constant<DType, DType::f16>());
}

}  // namespace bigmodel
