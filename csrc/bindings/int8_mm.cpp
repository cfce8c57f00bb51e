#include "../cpu/int8_mm.h"

#include "tensor.h"

namespace py = pybind11;

namespace bigmodel {

void register_int8_mm(py::module_& m) {
  m.def("int8_mm", [](py::handle a, py::handle b, py::handle out) {
    const DenseTensor da = dense(a, "a"), db = dense(b, "b");
    const View vout = view(out, "out");
    py::gil_scoped_release unlocked;
    int8_mm(da.view, db.view, vout);
  });
}

}  // namespace bigmodel
