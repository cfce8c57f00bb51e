#include "fused_dropout.h"

#include <cstring>

#include "../common/pages.h"
#include "../common/parallel.h"
#include "isa.h"
#include "row_slabs.h"

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
const KernelLevel level_of_fused_dropout("fused_dropout", [] { return forward_variants.level(); });
const KernelLevel level_of_fused_dropout_backward("fused_dropout_backward", [] { return backward_variants.level(); });
const KernelLevel level_of_bias("fused_dropout_backward_bias", [] { return backward_variants.level(); });

constexpr int64_t kGrainElements = 32768;   // below this, waking a second thread costs more than it saves
constexpr int64_t kStreamBytes = 32 << 20;  // outputs that no cache keeps until they are read again

void run_range(const DropoutArgs& args, DropoutKernel kernel, bool backward, int64_t begin, int64_t end, bool stream) {
  if (!args.seed || args.threshold < kDropAll) return kernel(args, begin, end, stream);
  // p = 1: the residual or zeros.
  const int64_t at = begin * element_size(args.dtype);
  const size_t bytes = static_cast<size_t>((end - begin) * element_size(args.dtype));
  char* out = static_cast<char*>(args.out) + at;
  if (!backward && args.other)
    std::memcpy(out, static_cast<const char*>(args.other) + at, bytes);
  else
    std::memset(out, 0, bytes);
}

void run(const DropoutArgs& args, DropoutKernel kernel, bool backward) {
  const int64_t bytes = args.numel * element_size(args.dtype);
  about_to_write(args.out, static_cast<size_t>(bytes));
  const bool stream = bytes >= kStreamBytes && reinterpret_cast<uintptr_t>(args.out) % 64 == 0;
  const int64_t chunks = (args.numel + kDropoutChunk - 1) / kDropoutChunk;
  parallel_for(chunks, kGrainElements / kDropoutChunk, [&](int64_t begin, int64_t end) {
    const int64_t last = end * kDropoutChunk;
    run_range(args, kernel, backward, begin * kDropoutChunk, last < args.numel ? last : args.numel, stream);
  });
}

}  // namespace

void fused_dropout(const DropoutArgs& args) { run(args, forward_variants.pick(), false); }

void fused_dropout_backward(const DropoutArgs& args) { run(args, backward_variants.pick(), true); }

void fused_dropout_range(const DropoutArgs& args, bool backward, int64_t begin, int64_t end) {
  run_range(args, (backward ? backward_variants : forward_variants).pick(), backward, begin, end, false);
}

void fused_dropout_backward_bias(const DropoutArgs& args, float* dbias) {
  about_to_write(args.out, static_cast<size_t>(args.numel * element_size(args.dtype)));
  const int64_t rows = args.features ? args.numel / args.features : 0;
  run_row_slabs(rows, args.features, 1, dbias, [&](int64_t begin, int64_t end, float* sums) {
    fused_dropout_range(args, true, begin * args.features, end * args.features);
    add_rows(args.out, args.dtype, begin, end, args.features, sums);
  });
}

}  // namespace bigmodel
