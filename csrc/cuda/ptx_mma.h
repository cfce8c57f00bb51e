// Tensor-core instructions of a warp: ldmatrix, mma, mma.sp. All 32 lanes take part.
//
// Fragments, with group = lane / 4 and t = lane % 4, in 32-bit registers of 4 int8 or 2 floats along K ("units"):
//   A [16 rows x 8 units]: a[0] = (group, t), a[1] = (group + 8, t), a[2] = (group, t + 4), a[3] = (group + 8, t + 4)
//   B [8 columns x 8 or 16 units]: b[i] = (group, t + 4 i)
//   C [16 x 8]: d[0], d[1] = (group, 2 t), (group, 2 t + 1); d[2], d[3] the same in row group + 8
// A of mma.sp holds the kept two of every four elements. Metadata are 2-bit positions, lowest first, the smaller
// position first, 32 bits to a lane:
//   s8, K = 64: lane t of a group: row group + 8 (t % 2), columns 32 (t / 2) to 32 (t / 2) + 31
//   16-bit, K = 32: lanes t = 2 kSelector and 2 kSelector + 1 of a group are read: columns 16 (t % 2) to
//   16 (t % 2) + 15 of row group in the low half and of row group + 8 in the high half.
#pragma once

#include "ptx.h"

#if defined(BIGMODEL_EMULATED)

#include "../emulator/ptx_mma.h"

#else

namespace bigmodel::ptx {

// 8x8 matrices of 16-bit elements (rows of 16 bytes). Lane l gives the address of row l % 8 of matrix l / 8 (lanes
// beyond the matrices: any address) and gets, of matrix i, the two elements (l / 4, 2 (l % 4) + {0, 1}) in r[i];
// transposed: the elements (2 (l % 4) + {0, 1}, l / 4).
__device__ __forceinline__ void load_matrix(uint32_t (&r)[1], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(row) : "memory");
}
__device__ __forceinline__ void load_matrix(uint32_t (&r)[2], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(row)
               : "memory");
}
__device__ __forceinline__ void load_matrix(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}
__device__ __forceinline__ void load_matrix_transposed(uint32_t (&r)[1], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(row) : "memory");
}
__device__ __forceinline__ void load_matrix_transposed(uint32_t (&r)[2], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(row)
               : "memory");
}
__device__ __forceinline__ void load_matrix_transposed(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

// d += a b: int8, K = 32.
__device__ __forceinline__ void mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d += a b: 16-bit floats, K = 16.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ptxas reads plain mma.sp as metadata in any order, which costs Hopper speed; from PTX 8.5 on it can be told.
#if __CUDACC_VER_MAJOR__ > 12 || (__CUDACC_VER_MAJOR__ == 12 && __CUDACC_VER_MINOR__ >= 5)
#define BIGMODEL_MMA_SP "mma.sp::ordered_metadata.sync.aligned."
#else
#define BIGMODEL_MMA_SP "mma.sp.sync.aligned."
#endif

// d += a b, two of every four elements of a's rows kept: int8, K = 64.
__device__ __forceinline__ void mma_sparse_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                                              uint32_t metadata) {
  asm volatile(BIGMODEL_MMA_SP
               "m16n8k64.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, "
               "{%0, %1, %2, %3}, %12, 0x0;"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(metadata));
}

// The same for 16-bit floats, K = 32.
template <int kSelector>
__device__ __forceinline__ void mma_sparse_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                                                uint32_t metadata) {
  static_assert(kSelector == 0 || kSelector == 1, "Pairs of lanes are chosen.");
  asm volatile(BIGMODEL_MMA_SP
               "m16n8k32.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, "
               "{%0, %1, %2, %3}, %12, %13;"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(metadata),
                 "n"(kSelector));
}
template <int kSelector>
__device__ __forceinline__ void mma_sparse_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                                               uint32_t metadata) {
  static_assert(kSelector == 0 || kSelector == 1, "Pairs of lanes are chosen.");
  asm volatile(BIGMODEL_MMA_SP
               "m16n8k32.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, "
               "{%0, %1, %2, %3}, %12, %13;"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(metadata),
                 "n"(kSelector));
}

}  // namespace bigmodel::ptx

#endif
