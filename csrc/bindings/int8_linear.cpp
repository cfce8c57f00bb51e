#include "../cpu/int8_linear.h"

#include "tensor.h"

namespace py = pybind11;

namespace bigmodel {

void register_int8_linear(py::module_& m) {
  m.def("int8_linear", [](py::handle x, py::handle weight, py::handle weight_scale, py::handle bias, py::handle out) {
    const View vx = view(x, "x"), vweight = view(weight, "weight"), vscale = view(weight_scale, "weight_scale");
    const std::optional<View> vbias = optional_view(bias, "bias");
    const View vout = view(out, "out");
    py::gil_scoped_release unlocked;
    int8_linear(vx, vweight, vscale, vbias, vout);
  });
}

}  // namespace bigmodel
