#include "../cpu/sparse_linear.h"

#include "tensor.h"

namespace py = pybind11;

namespace bigmodel {

void register_sparse_linear(py::module_& m) {
  m.def("sparse_linear", [](py::handle x, py::handle values, py::handle crow, py::handle col, py::handle bias,
                            py::handle out, int64_t panel) {
    const View vx = view(x, "x"), vvalues = view(values, "values"), vcrow = view(crow, "crow"), vcol = view(col, "col");
    const std::optional<View> vbias = optional_view(bias, "bias");
    const View vout = view(out, "out");
    py::gil_scoped_release unlocked;
    sparse_linear(vx, vvalues, vcrow, vcol, vbias ? &*vbias : nullptr, vout, panel);
  });
  m.def("sparse_linear_grad_input", [](py::handle grad, py::handle values, py::handle crow, py::handle col,
                                       py::handle out, int64_t panel) {
    const View vgrad = view(grad, "grad"), vvalues = view(values, "values"), vcrow = view(crow, "crow");
    const View vcol = view(col, "col"), vout = view(out, "out");
    py::gil_scoped_release unlocked;
    sparse_linear_grad_input(vgrad, vvalues, vcrow, vcol, vout, panel);
  });
  m.def("sparse_linear_grad_values",
        [](py::handle grad, py::handle x, py::handle crow, py::handle col, py::handle out, int64_t panel) {
          const View vgrad = view(grad, "grad"), vx = view(x, "x"), vcrow = view(crow, "crow"), vcol = view(col, "col");
          const View vout = view(out, "out");
          py::gil_scoped_release unlocked;
          sparse_linear_grad_values(vgrad, vx, vcrow, vcol, vout, panel);
        });
}

}  // namespace bigmodel
