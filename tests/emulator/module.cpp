// The module emulator_kernels: kernels.h on int32 memory that the caller holds, and how to steer the emulator.
#include <pybind11/pybind11.h>

#include "kernels.h"

namespace py = pybind11;

namespace bigmodel {
void register_emulator(py::module_& m);
}

namespace {
int* ints(uintptr_t address) { return reinterpret_cast<int*>(address); }
}  // namespace

PYBIND11_MODULE(emulator_kernels, m) {
  bigmodel::register_emulator(m);
  m.def("reverse", [](int threads, uintptr_t in, uintptr_t out) { reverse(threads, ints(in), ints(out)); });
  m.def("rotate",
        [](int threads, int steps, uintptr_t in, uintptr_t out) { rotate(threads, steps, ints(in), ints(out)); });
  m.def("rotate_in_warp", [](int steps, uintptr_t in, uintptr_t out) { rotate_in_warp(steps, ints(in), ints(out)); });
  m.def("sum_stages", [](int tiles, uintptr_t in, uintptr_t out) { sum_stages(tiles, ints(in), ints(out)); });
  m.def("hand_over", [](int rounds, uintptr_t out) { hand_over(rounds, ints(out)); });
  m.def("early_return", [](int threads, uintptr_t out) { early_return(threads, ints(out)); });
  m.def("collectives", [](uintptr_t out) { collectives(ints(out)); });
  m.def("count_conflicts", &count_conflicts);
  m.def("wrong", &wrong);
}
