// The end of binary_coded_linear in the vector operations of simd_avx2.h or simd_avx512.h, one of which is included
// before this. All in an anonymous namespace, so each file has its own copy and no other file can be linked to one.
#pragma once

#include <cstring>

#include "binary_coded_panel.h"

namespace bigmodel {
namespace {

template <DType dtype>
void finish(const BinaryCodedRows& p) {
  constexpr size_t kBytes = dtype == DType::f32 ? 4 : 2;
  for (int64_t r = 0; r < p.rows; ++r) {
    float* z = p.z + r * kBinaryColumns;
    const Floats scale = set(p.x_scale[r]);
    for (int64_t n = 0; n < kBinaryColumns; n += kLanes) {
      Floats y = load<DType::f32>(z, n) * scale;
      if (p.bias) y = y + load<DType::f32>(p.bias, n);
      store<DType::f32>(z, n, y);
    }
    if (p.activate) p.activate(z, 1, kBinaryColumns, kBinaryColumns, nullptr);
    char* to = static_cast<char*>(p.out) + static_cast<size_t>(r * p.out_stride) * kBytes;
    if (dtype == DType::f32) {
      std::memcpy(to, z, static_cast<size_t>(p.columns) * kBytes);
      continue;
    }
    alignas(64) uint16_t half[kBinaryColumns];
    for (int64_t n = 0; n < kBinaryColumns; n += kLanes) store<dtype>(half, n, load<DType::f32>(z, n));
    std::memcpy(to, half, static_cast<size_t>(p.columns) * kBytes);
  }
}

void finish(const BinaryCodedRows& p) {
  if (p.out_dtype == DType::f32) return finish<DType::f32>(p);
  p.out_dtype == DType::bf16 ? finish<DType::bf16>(p) : finish<DType::f16>(p);
}

}  // namespace
}  // namespace bigmodel
