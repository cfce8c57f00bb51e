#include "../cpu/int8_sparse_linear.h"

#include "tensor.h"

namespace py = pybind11;

namespace bigmodel {

void register_int8_sparse_linear(py::module_& m) {
  m.def("int8_sparse_linear", [](py::handle x, py::handle values, py::handle crow, py::handle col,
                                 py::handle weight_scale, py::handle row_sum, py::handle bias, py::handle out,
                                 int64_t panel) {
    const View vx = view(x, "x"), vvalues = view(values, "values"), vcrow = view(crow, "crow"), vcol = view(col, "col");
    const View vscale = view(weight_scale, "weight_scale"), vsum = view(row_sum, "row_sum"), vout = view(out, "out");
    const std::optional<View> vbias = optional_view(bias, "bias");
    py::gil_scoped_release unlocked;
    int8_sparse_linear(vx, vvalues, vcrow, vcol, vscale, vsum, vbias ? &*vbias : nullptr, vout, panel);
  });
}

}  // namespace bigmodel
