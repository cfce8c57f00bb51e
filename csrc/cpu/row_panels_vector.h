// Row panels over whichever vector type simd_<isa>.h has defined before this file is included; everything is in an
// anonymous namespace.
#pragma once

#include <cstring>

#include "row_panels.h"

namespace bigmodel {
namespace {

constexpr int64_t element_bytes(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

template <DType D>
const void* at(const void* base, int64_t i) {
  return static_cast<const char*>(base) + i * element_bytes(D);
}

template <DType D>
void pack_dtype(const void* x, int64_t stride, int64_t rows, int64_t columns, int64_t size, int64_t padded,
                float* panels) {
  for (int64_t r = 0; r < padded; ++r) {
    for (int64_t first = 0; first < columns; first += size) {
      float* to = panels + first * padded + r * size;
      const void* from = at<D>(x, r * stride + first);
      const int64_t count = r >= rows ? 0 : columns - first < size ? columns - first : size;
      int64_t c = 0;
      for (; c + kLanes <= count; c += kLanes) store<DType::f32>(to, c, load<D>(from, c));
      if (c < count) {
        char some[kLanes * 4] = {};
        memcpy(some, at<D>(from, c), static_cast<size_t>((count - c) * element_bytes(D)));
        store<DType::f32>(to, c, load<D>(some, 0));
        c += kLanes;
      }
      for (; c < size; c += kLanes) store<DType::f32>(to, c, set(0.0f));
    }
  }
}

template <DType D>
void unpack_dtype(const float* y, int64_t rows, int64_t columns, int64_t size, const float* bias, void* out,
                  int64_t stride) {
  float last[kLanes] = {};  // the bias of columns that are no whole vector
  const int64_t whole = columns / kLanes * kLanes;
  for (int64_t c = whole; bias && c < columns; ++c) last[c - whole] = bias[c];
  for (int64_t r = 0; r < rows; ++r, y += size) {
    char* to = static_cast<char*>(out) + r * stride * element_bytes(D);
    for (int64_t c = 0; c < whole; c += kLanes) {
      const Floats v = load<DType::f32>(y, c);
      store<D>(to, c, bias ? v + load<DType::f32>(bias, c) : v);
    }
    if (whole < columns) {
      const Floats v = load<DType::f32>(y, whole);
      char some[kLanes * 4];
      store<D>(some, 0, bias ? v + load<DType::f32>(last, 0) : v);
      memcpy(to + whole * element_bytes(D), some, static_cast<size_t>((columns - whole) * element_bytes(D)));
    }
  }
}

void pack(const void* x, DType dtype, int64_t stride, int64_t rows, int64_t columns, int64_t size, int64_t padded,
          float* panels) {
  if (dtype == DType::f32) return pack_dtype<DType::f32>(x, stride, rows, columns, size, padded, panels);
  if (dtype == DType::bf16) return pack_dtype<DType::bf16>(x, stride, rows, columns, size, padded, panels);
  return pack_dtype<DType::f16>(x, stride, rows, columns, size, padded, panels);
}

void unpack(const float* y, int64_t rows, int64_t columns, int64_t size, const float* bias, void* out, DType dtype,
            int64_t stride) {
  if (dtype == DType::f32) return unpack_dtype<DType::f32>(y, rows, columns, size, bias, out, stride);
  if (dtype == DType::bf16) return unpack_dtype<DType::bf16>(y, rows, columns, size, bias, out, stride);
  return unpack_dtype<DType::f16>(y, rows, columns, size, bias, out, stride);
}

}  // namespace
}  // namespace bigmodel
