// Fused dropout on the CPU; common/dropout.h has the formula.
#pragma once

#include "../common/dropout.h"

namespace bigmodel {

// The kernels work on chunks of 64 elements: 8 Philox blocks, 64 mask bits, whole cache lines of every dtype.
constexpr int64_t kDropoutChunk = 64;

// One thread's share: elements [begin, end). `stream` writes past the caches; begin must then be a multiple of
// kDropoutChunk.
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

// The same, and the gradient of the bias: dbias [args.features] is the sum of the rows of args.out, in an order that
// does not depend on the number of threads.
void fused_dropout_backward_bias(const DropoutArgs& args, float* dbias);

// Elements [begin, end) on the calling thread, for ops that go on with them while they are in a cache. Any p.
void fused_dropout_range(const DropoutArgs& args, bool backward, int64_t begin, int64_t end);

}  // namespace bigmodel
