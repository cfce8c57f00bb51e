#include "isa.h"

#include <cstring>
#include <map>

#include "../common/check.h"

namespace bigmodel {
namespace {

constexpr const char* kNames[kIsaCount] = {"scalar", "avx2", "avx512", "avx512vnni", "avx512vbmi"};

Isa detect() {
#if defined(__x86_64__)
  // These also ask the operating system (xgetbv) whether it saves the wide registers.
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  if (vnni && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("bmi2")) return Isa::avx512vbmi;
  if (vnni) return Isa::avx512vnni;
  if (avx512) return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::scalar;
}

Isa active = detect();

std::map<std::string, Isa (*)()>& levels() {
  static std::map<std::string, Isa (*)()> all;
  return all;
}

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

Isa detected_isa() {
  static const Isa best = detect();
  return best;
}

Isa active_isa() { return active; }

void set_active_isa(const char* name) {
  for (int i = 0; i < kIsaCount; ++i) {
    if (std::strcmp(name, kNames[i]) != 0) continue;
    if (i > static_cast<int>(detected_isa()))
      throw std::runtime_error(message("BIGMODEL_ISA=", name, " is not supported by this processor; its best is ",
                                       isa_name(detected_isa())));
    active = static_cast<Isa>(i);
    return;
  }
  throw std::invalid_argument(
      message("BIGMODEL_ISA must be scalar, avx2, avx512, avx512vnni or avx512vbmi, got '", name, "'"));
}

KernelLevel::KernelLevel(const char* op, Isa (*level)()) { levels()[op] = level; }

Isa kernel_isa(const std::string& op) {
  const auto found = levels().find(op);
  if (found == levels().end()) throw std::invalid_argument(message("op: no CPU kernel is called '", op, "'"));
  return found->second();
}

}  // namespace bigmodel
