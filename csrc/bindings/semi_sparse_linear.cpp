#include "../cpu/semi_sparse_linear.h"

#include "output.h"
#include "tensor.h"
#include "unlocked.h"

namespace py = pybind11;

namespace bigmodel {

void register_semi_sparse_linear(py::module_& m) {
  m.def("semi_sparse_linear", [](py::handle x, py::handle values, py::handle index, py::handle bias, py::handle out) {
    const DenseTensor dx = dense(x, "x"), dvalues = dense(values, "values"), dindex = dense(index, "index");
    const std::optional<DenseTensor> dbias = optional_dense(bias, "bias");
    const View vout = output(out, "out");
    unlocked(dx.view.numel() + dvalues.view.numel() + vout.numel(),
             [&] { semi_sparse_linear(dx.view, dvalues.view, dindex.view, dbias ? &dbias->view : nullptr, vout); });
  });
  m.def("semi_sparse_linear_grad_input", [](py::handle grad, py::handle values, py::handle index, py::handle out) {
    const DenseTensor dgrad = dense(grad, "grad"), dvalues = dense(values, "values"), dindex = dense(index, "index");
    const View vout = output(out, "out");
    unlocked(dgrad.view.numel() + dvalues.view.numel() + vout.numel(),
             [&] { semi_sparse_linear_grad_input(dgrad.view, dvalues.view, dindex.view, vout); });
  });
  m.def("semi_sparse_linear_grad_values", [](py::handle grad, py::handle x, py::handle index, py::handle out) {
    const DenseTensor dgrad = dense(grad, "grad"), dx = dense(x, "x"), dindex = dense(index, "index");
    const View vout = output(out, "out");
    unlocked(dgrad.view.numel() + dx.view.numel() + vout.numel(),
             [&] { semi_sparse_linear_grad_values(dgrad.view, dx.view, dindex.view, vout); });
  });
}

}  // namespace bigmodel
