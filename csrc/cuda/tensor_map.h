// What the tensor memory accelerator (TMA) needs to know of a tensor in global memory; made on the host, passed to the
// kernel by value as `const __grid_constant__ TensorMap`.
#pragma once

#include <cstdint>
#include <initializer_list>

#if defined(BIGMODEL_EMULATED)
#include "../emulator/tensor_map.h"
#else
#include <cuda.h>
namespace bigmodel {
using TensorMap = CUtensorMap;
}
#endif

namespace bigmodel {

enum class TensorElement { s8, bf16, f16, f32, s32 };
enum class TensorSwizzle { none, bytes_32, bytes_64, bytes_128 };

// sizes, innermost first, in elements (2 or 3 of them); strides of the outer dimensions in bytes (multiples of 16);
// box: what one copy moves, at most 256 in each dimension, its innermost at most the swizzle's bytes. Reads outside the
// tensor give 0, writes there do nothing. Throws std::runtime_error if the driver refuses.
TensorMap make_tensor_map(TensorElement element, const void* address, std::initializer_list<int64_t> sizes,
                          std::initializer_list<int64_t> strides, std::initializer_list<int> box,
                          TensorSwizzle swizzle);

}  // namespace bigmodel
