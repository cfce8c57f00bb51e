// Between binary_coded_linear.cpp, which nvcc need not see, and the kernels' files.
#pragma once

#include "../common/round.h"
#include "binary_coded_linear.h"
#include "guard.h"

namespace bigmodel {

constexpr int kWordInputs = 16, kStepWords = 4;  // a step is what a warp's lanes load at once: 4 words of 16 inputs

// The quantized rows as the kernel reads them: groups of whole steps of words of 16 bytes.
struct BinaryGroups {
  int64_t groups, words, steps;  // words and steps of a group
  int64_t bytes;                 // of a row
};
inline BinaryGroups binary_groups(int64_t k, int64_t group_size) {
  const int64_t groups = ceil_div(k, group_size), words = ceil_div(group_size, kWordInputs);
  const int64_t steps = ceil_div(words, kStepWords);
  return {groups, words, steps, groups * steps * kStepWords * kWordInputs};
}

template <DType D>
void launch_binary_coded(const BinaryCodedArgs& args, bool narrow, cudaStream_t stream);
template <>
void launch_binary_coded<DType::f32>(const BinaryCodedArgs&, bool, cudaStream_t);
template <>
void launch_binary_coded<DType::bf16>(const BinaryCodedArgs&, bool, cudaStream_t);
template <>
void launch_binary_coded<DType::f16>(const BinaryCodedArgs&, bool, cudaStream_t);

}  // namespace bigmodel
