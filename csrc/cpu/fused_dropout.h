// Fused dropout on the CPU; common/dropout.h has the formula.
#pragma once

#include "../common/dropout.h"

namespace bigmodel {

// The kernels work on chunks of 64 elements: 8 Philox blocks, 64 mask bits, whole cache lines of every dtype.
constexpr int64_t kDropoutChunk = 64;

// One thread's share: elements [begin, end), begin a multiple of kDropoutChunk. `stream` writes past the caches.
using DropoutKernel = void (*)(const DropoutArgs& args, int64_t begin, int64_t end, bool stream);

void fused_dropout_scalar(const DropoutArgs&, int64_t, int64_t, bool);
void fused_dropout_backward_scalar(const DropoutArgs&, int64_t, int64_t, bool);
#if defined(__x86_64__)
void fused_dropout_avx2(const DropoutArgs&, int64_t, int64_t, bool);
void fused_dropout_backward_avx2(const DropoutArgs&, int64_t, int64_t, bool);
void fused_dropout_avx512(const DropoutArgs&, int64_t, int64_t, bool);
void fused_dropout_backward_avx512(const DropoutArgs&, int64_t, int64_t, bool);
#endif

// Run over torch's threads. args as made by dropout_args.
void fused_dropout(const DropoutArgs& args);
void fused_dropout_backward(const DropoutArgs& args);

}  // namespace bigmodel
