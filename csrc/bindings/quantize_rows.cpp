#include "../cpu/quantize_rows.h"

#include "tensor.h"

namespace py = pybind11;

namespace bigmodel {

void register_quantize_rows(py::module_& m) {
  m.def("quantize_rows", [](py::handle x, py::handle q, py::handle scale) {
    const View vx = view(x, "x"), vq = view(q, "q"), vscale = view(scale, "scale");
    py::gil_scoped_release unlocked;
    quantize_rows(vx, vq, vscale);
  });
}

}  // namespace bigmodel
