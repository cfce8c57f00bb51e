#include "fused_dropout.h"

#include <cstring>

#include "../common/pages.h"
#include "../common/parallel.h"
#include "isa.h"

namespace bigmodel {
namespace {

#if defined(__x86_64__)
constexpr Variants<DropoutKernel> forward_variants = {
    {fused_dropout_scalar, fused_dropout_avx2, fused_dropout_avx512, nullptr}};
constexpr Variants<DropoutKernel> backward_variants = {
    {fused_dropout_backward_scalar, fused_dropout_backward_avx2, fused_dropout_backward_avx512, nullptr}};
#else
constexpr Variants<DropoutKernel> forward_variants = {{fused_dropout_scalar, nullptr, nullptr, nullptr}};
constexpr Variants<DropoutKernel> backward_variants = {{fused_dropout_backward_scalar, nullptr, nullptr, nullptr}};
#endif
const KernelLevel level_of_fused_dropout_backward("fused_dropout_backward", [] { return backward_variants.level(); });
const KernelLevel level_of_fused_dropout("fused_dropout", [] { return forward_variants.level(); });

constexpr int64_t kGrainElements = 32768;   // below this, waking a second thread costs more than it saves
constexpr int64_t kStreamBytes = 32 << 20;  // outputs that no cache keeps until they are read again

void run(const DropoutArgs& args, const Variants<DropoutKernel>& variants, bool keep_other) {
  const int64_t element_bytes = args.dtype == DType::f32 ? 4 : 2;
  const int64_t bytes = args.numel * element_bytes;
  about_to_write(args.out, static_cast<size_t>(bytes));
  if (args.seed && args.threshold >= kDropAll) {  // p = 1: the residual or zeros
    if (keep_other && args.other)
      std::memcpy(args.out, args.other, static_cast<size_t>(bytes));
    else
      std::memset(args.out, 0, static_cast<size_t>(bytes));
    return;
  }
  const auto kernel = variants.pick();
  const bool stream = bytes >= kStreamBytes && reinterpret_cast<uintptr_t>(args.out) % 64 == 0;
  const int64_t chunks = (args.numel + kDropoutChunk - 1) / kDropoutChunk;
  parallel_for(chunks, kGrainElements / kDropoutChunk, [&](int64_t begin, int64_t end) {
    const int64_t last = end * kDropoutChunk;
    kernel(args, begin * kDropoutChunk, last < args.numel ? last : args.numel, stream);
  });
}

}  // namespace

void fused_dropout(const DropoutArgs& args) { run(args, forward_variants, true); }

void fused_dropout_backward(const DropoutArgs& args) { run(args, backward_variants, false); }

}  // namespace bigmodel
