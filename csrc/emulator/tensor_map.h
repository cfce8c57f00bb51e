// The emulator's tensor map: what make_tensor_map was told.
#pragma once

#include <cstdint>

namespace bigmodel {

struct TensorMap {
  char* address = nullptr;
  int rank = 0, element_bytes = 0, swizzle_bytes = 0;  // swizzle 0: none
  int64_t sizes[3] = {1, 1, 1}, strides[3] = {};       // innermost first; strides in bytes
  int box[3] = {1, 1, 1};
};

}  // namespace bigmodel
