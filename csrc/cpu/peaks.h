// The machine's limits, to measure kernels against: how many operations a second the arithmetic units do when they wait
// for nothing, and how fast memory of a given size is read. Nothing is computed.
#pragma once

#include <cstdint>

#include "../common/view.h"

namespace bigmodel {

enum class Peak : int { int8, fp32 };

// One thread's share: `iterations` times a block of independent multiply-adds in registers. Returns the operations
// done, a multiply and an add counting as two. int8 is the fastest exact way to multiply int8: vpdpbusd, or vpmaddwd +
// vpaddd.
using PeakKernel = int64_t (*)(int64_t iterations);

int64_t peak_int8_avx2(int64_t);
int64_t peak_int8_avx512(int64_t);
int64_t peak_int8_avx512vnni(int64_t);
int64_t peak_fp32_avx2(int64_t);
int64_t peak_fp32_avx512(int64_t);

// One thread's share: loads `count` bytes (a multiple of 512) once, front to back. The result is not to be used.
using PeakReadKernel = uint64_t (*)(const void* data, int64_t count);

uint64_t peak_read_scalar(const void*, int64_t);
uint64_t peak_read_avx2(const void*, int64_t);
uint64_t peak_read_avx512(const void*, int64_t);

// On all of torch's threads at once; returns the operations of all of them. Throws if the active instruction set has no
// such kernel (scalar).
int64_t peak_arithmetic(Peak peak, int64_t iterations);

// Reads `x`, contiguous, uint8; what is left of it after a multiple of 512 bytes a thread is not read. Returns the
// bytes read.
int64_t peak_read(const View& x);

}  // namespace bigmodel
