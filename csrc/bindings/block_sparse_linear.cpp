#include "../cpu/block_sparse_linear.h"

#include "output.h"
#include "tensor.h"
#include "unlocked.h"

namespace py = pybind11;

namespace bigmodel {

void register_block_sparse_linear(py::module_& m) {
  m.def("block_sparse_linear",
        [](py::handle x, py::handle values, py::handle crow, py::handle col, py::handle bias, py::handle out) {
          const DenseTensor dx = dense(x, "x"), dvalues = dense(values, "values"), dcrow = dense(crow, "crow");
          const DenseTensor dcol = dense(col, "col");
          const std::optional<DenseTensor> dbias = optional_dense(bias, "bias");
          const View vout = output(out, "out");
          unlocked(dx.view.numel() + dvalues.view.numel() + vout.numel(), [&] {
            block_sparse_linear(dx.view, dvalues.view, dcrow.view, dcol.view, dbias ? &dbias->view : nullptr, vout);
          });
        });
  m.def("block_sparse_linear_grad_input",
        [](py::handle grad, py::handle values, py::handle crow, py::handle col, py::handle out) {
          const DenseTensor dgrad = dense(grad, "grad"), dvalues = dense(values, "values"), dcrow = dense(crow, "crow");
          const DenseTensor dcol = dense(col, "col");
          const View vout = output(out, "out");
          unlocked(dgrad.view.numel() + dvalues.view.numel() + vout.numel(),
                   [&] { block_sparse_linear_grad_input(dgrad.view, dvalues.view, dcrow.view, dcol.view, vout); });
        });
  m.def("block_sparse_linear_grad_values",
        [](py::handle grad, py::handle x, py::handle crow, py::handle col, py::handle out) {
          const DenseTensor dgrad = dense(grad, "grad"), dx = dense(x, "x"), dcrow = dense(crow, "crow");
          const DenseTensor dcol = dense(col, "col");
          const View vout = output(out, "out");
          unlocked(dgrad.view.numel() + dx.view.numel() + vout.numel(),
                   [&] { block_sparse_linear_grad_values(dgrad.view, dx.view, dcrow.view, dcol.view, vout); });
        });
}

}  // namespace bigmodel
