// The module emulator_kernels: kernels.h on int32 memory that the caller holds, and how to steer the emulator.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "kernels.h"

namespace py = pybind11;

namespace bigmodel {
void register_emulator(py::module_& m);
}

namespace {
int* ints(uintptr_t address) { return reinterpret_cast<int*>(address); }

using Three = std::array<int, 3>;

TensorBox tensor_box(uintptr_t address, const Three& sizes, const Three& box, const Three& at, int rank, int swizzle) {
  TensorBox b{ints(address), {}, {}, {}, rank, swizzle};
  for (int d = 0; d < 3; ++d) {
    b.sizes[d] = sizes[d];
    b.box[d] = box[d];
    b.at[d] = at[d];
  }
  return b;
}
}  // namespace

PYBIND11_MODULE(emulator_kernels, m) {
  bigmodel::register_emulator(m);
  m.def("order", [](int threads, uintptr_t count, uintptr_t out) { order(threads, ints(count), ints(out)); });
  m.def("reverse", [](int threads, uintptr_t in, uintptr_t out) { reverse(threads, ints(in), ints(out)); });
  m.def("reverse_twice", [](int threads, uintptr_t in, uintptr_t out) { reverse_twice(threads, ints(in), ints(out)); });
  m.def("rotate",
        [](int threads, int steps, uintptr_t in, uintptr_t out) { rotate(threads, steps, ints(in), ints(out)); });
  m.def("rotate_in_warp", [](int steps, uintptr_t in, uintptr_t out) { rotate_in_warp(steps, ints(in), ints(out)); });
  m.def("sum_stages", [](int tiles, uintptr_t in, uintptr_t out) { sum_stages(tiles, ints(in), ints(out)); });
  m.def("hand_over", [](int rounds, uintptr_t out) { hand_over(rounds, ints(out)); });
  m.def("early_return", [](int threads, uintptr_t out) { early_return(threads, ints(out)); });
  m.def("collectives", [](uintptr_t out) { collectives(ints(out)); });
  m.def("count_conflicts", &count_conflicts);
  m.def("wrong", &wrong);
  m.def("load_box", [](uintptr_t address, const Three& sizes, const Three& box, const Three& at, int rank, int swizzle,
                       uintptr_t out) { load_box(tensor_box(address, sizes, box, at, rank, swizzle), ints(out)); });
  m.def("store_box", [](uintptr_t address, const Three& sizes, const Three& box, const Three& at, int rank, int swizzle,
                        uintptr_t in) { store_box(tensor_box(address, sizes, box, at, rank, swizzle), ints(in)); });
  m.def("sum_tiles", [](int tiles, uintptr_t in, uintptr_t out) { sum_tiles(tiles, ints(in), ints(out)); });
  m.def("product_s8",
        [](int tiles, uintptr_t a, uintptr_t b, uintptr_t out) { product_s8(tiles, ints(a), ints(b), ints(out)); });
  m.def("product_bf16",
        [](int tiles, uintptr_t a, uintptr_t b, uintptr_t out) { product_bf16(tiles, ints(a), ints(b), ints(out)); });
  m.def("peek", [](uintptr_t before, uintptr_t after) { peek(ints(before), ints(after)); });
  m.def("wrong_on_sm90", &wrong_on_sm90);
}
