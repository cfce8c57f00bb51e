#include "../cpu/int8_sparse_linear.h"

#include "output.h"
#include "tensor.h"
#include "unlocked.h"

namespace py = pybind11;

namespace bigmodel {

void register_int8_sparse_linear(py::module_& m) {
  m.def("int8_sparse_linear", [](py::handle x, py::handle values, py::handle crow, py::handle col, py::handle order,
                                 py::handle weight_scale, py::handle row_sum, py::handle bias, py::handle out,
                                 int64_t panel, const char* activation) {
    const DenseTensor dx = dense(x, "x"), dvalues = dense(values, "values"), dcrow = dense(crow, "crow");
    const DenseTensor dcol = dense(col, "col"), dscale = dense(weight_scale, "weight_scale");
    const DenseTensor dsum = dense(row_sum, "row_sum");
    const std::optional<DenseTensor> dorder = optional_dense(order, "order"), dbias = optional_dense(bias, "bias");
    const View vout = output(out, "out");
    unlocked(dx.view.numel() + dvalues.view.numel() + vout.numel(), [&] {
      int8_sparse_linear(dx.view, dvalues.view, dcrow.view, dcol.view, dorder ? &dorder->view : nullptr, dscale.view,
                         dsum.view, dbias ? &dbias->view : nullptr, vout, panel, activation);
    });
  });
}

}  // namespace bigmodel
