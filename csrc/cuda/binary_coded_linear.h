// binary_coded_linear on CUDA devices: the results of cpu/binary_coded_linear.h, bit for bit where there is no
// activation. Any number of rows; made for few, as 8 rows at a time read all weights.
#pragma once

#include "linear_args.h"

namespace bigmodel {

struct BinaryCodedArgs {
  LinearArgs linear;
  const uint8_t* packed;   // [ceil(N/64), words, bits, 64, 2] (formats/binary_coded.py)
  const uint16_t* scales;  // float16 [ceil(N/64), groups, bits, 64]
  void* workspace;         // binary_coded_workspace(...) bytes, aligned to 16
  int64_t group_size;      // at most K rounded up to a multiple of 16
  int bits;
};

int64_t binary_coded_workspace(int64_t m, int64_t k, int64_t group_size);

// Enqueues on `stream` of `device`; throws std::runtime_error if a launch fails.
void binary_coded_linear_cuda(const BinaryCodedArgs& args, int device, void* stream);

}  // namespace bigmodel
