// Single tensor-core instructions on registers as they come: how the emulator's reading of their layouts is compared
// with a GPU's, and with the tables of the PTX ISA.
#pragma once

#include <cstdint>

namespace bigmodel {

enum class MmaKind { s8, bf16, f16, sparse_s8, sparse_bf16_0, sparse_bf16_1, sparse_f16_0, sparse_f16_1 };

// One warp. a: [32][4], b: [32][2], or [32][4] if sparse, metadata: [32] (read if sparse), d: [32][4] int32 or float32
// bits, added to. All registers of lane 0 first.
void mma_fragments(MmaKind kind, const uint32_t* a, const uint32_t* b, const uint32_t* metadata, uint32_t* d,
                   int device, void* stream);

// image: 4096 bytes of shared memory; offsets: [32], of each lane's row; r: [32][matrices].
void load_matrix_fragments(int matrices, bool transposed, const void* image, const uint32_t* offsets, uint32_t* r,
                           int device, void* stream);

constexpr int kFragmentImage = 4096;

// One m64n64 product of a warpgroup on sm_90a. image: kWgmmaImage bytes of shared memory, A from its start and B from
// its middle on, both `inside` bytes along the row; the rest as matrix_descriptor has it. d: [128][32], written.
void wgmma_fragments(MmaKind kind, int swizzle_bytes, int stride, int leading, int inside, const void* image,
                     uint32_t* d, int device, void* stream);

constexpr int kWgmmaImage = 32768;

}  // namespace bigmodel
