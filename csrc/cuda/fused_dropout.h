// Fused dropout on CUDA devices; common/dropout.h has the formula. The mask is the CPU's, bit for bit: the same
// counters, whatever the launch shape. The seed is read from device memory, so a captured graph draws anew at every
// replay.
#pragma once

#include "../common/dropout.h"

namespace bigmodel {

// Enqueue on `stream` (a cudaStream_t) of `device`. All addresses in args are device addresses.
// Throws std::runtime_error if the launch fails.
void fused_dropout_cuda(const DropoutArgs& args, int device, void* stream);
void fused_dropout_backward_cuda(const DropoutArgs& args, int device, void* stream);

}  // namespace bigmodel
