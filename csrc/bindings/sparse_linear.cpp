#include "../cpu/sparse_linear.h"

#include "output.h"
#include "tensor.h"
#include "unlocked.h"

namespace py = pybind11;

namespace bigmodel {
namespace {

const View* view_or_null(const std::optional<DenseTensor>& tensor) { return tensor ? &tensor->view : nullptr; }

}  // namespace

void register_sparse_linear(py::module_& m) {
  m.def("sparse_linear", [](py::handle x, py::handle values, py::handle crow, py::handle col, py::handle order,
                            py::handle bias, py::handle out, int64_t panel, const char* activation) {
    const DenseTensor dx = dense(x, "x"), dvalues = dense(values, "values"), dcrow = dense(crow, "crow");
    const DenseTensor dcol = dense(col, "col");
    const std::optional<DenseTensor> dorder = optional_dense(order, "order"), dbias = optional_dense(bias, "bias");
    const View vout = output(out, "out");
    unlocked(dx.view.numel() + dvalues.view.numel() + vout.numel(), [&] {
      sparse_linear(dx.view, dvalues.view, dcrow.view, dcol.view, view_or_null(dorder), view_or_null(dbias), vout,
                    panel, activation);
    });
  });
  m.def("sparse_linear_grad_input", [](py::handle grad, py::handle values, py::handle crow, py::handle col,
                                       py::handle order, py::handle out, int64_t panel) {
    const DenseTensor dgrad = dense(grad, "grad"), dvalues = dense(values, "values"), dcrow = dense(crow, "crow");
    const DenseTensor dcol = dense(col, "col");
    const std::optional<DenseTensor> dorder = optional_dense(order, "order");
    const View vout = output(out, "out");
    unlocked(dgrad.view.numel() + dvalues.view.numel() + vout.numel(), [&] {
      sparse_linear_grad_input(dgrad.view, dvalues.view, dcrow.view, dcol.view, view_or_null(dorder), vout, panel);
    });
  });
  m.def("sparse_linear_grad_values", [](py::handle grad, py::handle x, py::handle crow, py::handle col,
                                        py::handle order, py::handle out, int64_t panel) {
    const DenseTensor dgrad = dense(grad, "grad"), dx = dense(x, "x"), dcrow = dense(crow, "crow");
    const DenseTensor dcol = dense(col, "col");
    const std::optional<DenseTensor> dorder = optional_dense(order, "order");
    const View vout = output(out, "out");
    unlocked(dgrad.view.numel() + dx.view.numel() + vout.numel(), [&] {
      sparse_linear_grad_values(dgrad.view, dx.view, dcrow.view, dcol.view, view_or_null(dorder), vout, panel);
    });
  });
}

}  // namespace bigmodel
