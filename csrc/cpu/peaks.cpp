#include "peaks.h"

#include <atomic>

#include "../common/check.h"
#include "../common/parallel.h"
#include "isa.h"

namespace bigmodel {
namespace {
#if defined(__x86_64__)
constexpr Variants<PeakKernel> kernels[] = {
    {{nullptr, peak_int8_avx2, peak_int8_avx512, peak_int8_avx512vnni}},
    {{nullptr, peak_fp32_avx2, peak_fp32_avx512, nullptr}},
};
constexpr Variants<PeakReadKernel> read_variants = {{peak_read_scalar, peak_read_avx2, peak_read_avx512, nullptr}};
#else
constexpr Variants<PeakKernel> kernels[] = {{{nullptr, nullptr, nullptr, nullptr}},
                                            {{nullptr, nullptr, nullptr, nullptr}}};
constexpr Variants<PeakReadKernel> read_variants = {{peak_read_scalar, nullptr, nullptr, nullptr}};
#endif
constexpr int64_t kReadUnit = 512;
std::atomic<uint64_t> unused;  // results of reading end here, so that no compiler leaves the reading out
}  // namespace

int64_t peak_arithmetic(Peak peak, int64_t iterations) {
  BIGMODEL_CHECK(iterations >= 1, "iterations must be at least 1, got ", iterations);
  const PeakKernel kernel = kernels[static_cast<int>(peak)].pick();
  BIGMODEL_CHECK(kernel != nullptr, "the instruction set ", isa_name(active_isa()),
                 " has no kernel that shows its peak");
  std::atomic<int64_t> operations{0};
  parallel_for(num_threads(), 1, [&](int64_t begin, int64_t end) { operations += kernel(iterations * (end - begin)); });
  return operations;
}

int64_t peak_read(const View& x) {
  check_dtype(x, "x", DType::u8);
  check_contiguous(x, "x");
  const int64_t units = x.numel() / kReadUnit;
  const PeakReadKernel kernel = read_variants.pick();
  const int64_t share = (units + num_threads() - 1) / num_threads();
  parallel_for(units, share > 0 ? share : 1, [&](int64_t begin, int64_t end) {
    unused += kernel(x.as<char>() + begin * kReadUnit, (end - begin) * kReadUnit);
  });
  return units * kReadUnit;
}

}  // namespace bigmodel
