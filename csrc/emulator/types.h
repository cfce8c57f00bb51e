// CUDA's vector types and function qualifiers, for kernel sources compiled by a host compiler.
#pragma once

#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

#define BIGMODEL_VECTOR_TYPES(scalar, name)                                         \
  struct __align__(2 * sizeof(scalar)) name##2 { scalar x, y; };                    \
  struct name##3 { scalar x, y, z; };                                               \
  struct __align__(16) name##4 { scalar x, y, z, w; };                              \
  inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; }              \
  inline name##3 make_##name##3(scalar x, scalar y, scalar z) { return {x, y, z}; } \
  inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
BIGMODEL_VECTOR_TYPES(int, int)
BIGMODEL_VECTOR_TYPES(unsigned, uint)
BIGMODEL_VECTOR_TYPES(float, float)
#undef BIGMODEL_VECTOR_TYPES

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
