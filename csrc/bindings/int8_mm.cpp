#include "../cpu/int8_mm.h"

#include "tensor.h"

namespace py = pybind11;

namespace bigmodel {

void register_int8_mm(py::module_& m) {
  m.def("int8_mm", [](py::handle a, py::handle b, py::handle out) {
    const View va = view(a, "a"), vb = view(b, "b"), vout = view(out, "out");
    py::gil_scoped_release unlocked;
    int8_mm(va, vb, vout);
  });
}

}  // namespace bigmodel
