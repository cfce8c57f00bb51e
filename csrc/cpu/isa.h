// Which instruction set runs: the best the processor has, or the one BIGMODEL_ISA forces.
#pragma once

#include <string>

namespace bigmodel {

// Ordered: each level includes the ones before it.
enum class Isa : int { scalar = 0, avx2 = 1, avx512 = 2, avx512vnni = 3, avx512vbmi = 4 };
constexpr int kIsaCount = 5;

const char* isa_name(Isa isa);
Isa detected_isa();                     // the best this processor (and its operating system) supports
Isa active_isa();                       // what kernels use now
void set_active_isa(const char* name);  // throws if unknown or unsupported here

// One kernel per instruction set; null where an op has no special version.
// The best one not above the active level is used.
template <typename Fn>
struct Variants {
  Fn kernels[kIsaCount];

  Isa level() const {
    int i = static_cast<int>(active_isa());
    while (i > 0 && !kernels[i]) --i;
    return static_cast<Isa>(i);
  }
  Fn pick() const { return kernels[static_cast<int>(level())]; }
};

// Says, for explain, which level an op's kernels run at now. Each op's file holds one of these.
struct KernelLevel {
  KernelLevel(const char* op, Isa (*level)());
};
Isa kernel_isa(const std::string& op);  // throws if no kernel of that name is known

}  // namespace bigmodel
