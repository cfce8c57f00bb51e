#include "../cpu/sparse_conv2d.h"

#include "conv_window.h"
#include "output.h"
#include "tensor.h"
#include "unlocked.h"

namespace py = pybind11;

namespace bigmodel {

void register_sparse_conv2d(py::module_& m) {
  m.def("sparse_conv2d", [](py::handle x, py::handle values, py::handle crow, py::handle col, py::handle bias,
                            py::handle out, const py::tuple& window, int64_t panel, bool channels_last) {
    const DenseTensor dvalues = dense(values, "values"), dcrow = dense(crow, "crow"), dcol = dense(col, "col");
    const std::optional<DenseTensor> dbias = optional_dense(bias, "bias");
    const View vx = view(x, "x"), vout = output(out, "out");
    const ConvWindow w = conv_window(window);
    unlocked(vx.numel() + dvalues.view.numel() + vout.numel(), [&] {
      sparse_conv2d(vx, dvalues.view, dcrow.view, dcol.view, dbias ? &dbias->view : nullptr, vout, w, panel,
                    channels_last);
    });
  });
}

}  // namespace bigmodel
