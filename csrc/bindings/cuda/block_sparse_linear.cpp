#include "../../cuda/block_sparse_linear.h"

#include "device.h"

namespace py = pybind11;

namespace bigmodel {

void register_block_sparse_linear_cuda(py::module_& m) {
  m.def("block_sparse_linear",
        [](py::handle x, py::handle values, py::handle crow, py::handle col, py::handle bias, py::handle out) {
          const View vx = device_view(x, "x"), vvalues = *device_view(values, "values", vx);
          const View vcrow = *device_view(crow, "crow", vx), vcol = *device_view(col, "col", vx);
          const auto vbias = device_view(bias, "bias", vx);
          const View vout = *device_view(out, "out", vx);
          void* stream = current_stream(vx);
          py::gil_scoped_release unlocked;
          block_sparse_linear_cuda(vx, vvalues, vcrow, vcol, vbias ? &*vbias : nullptr, vout, stream);
        });
  m.def("block_sparse_linear_grad_input",
        [](py::handle grad, py::handle values, py::handle crow, py::handle col, py::handle scratch, py::handle out) {
          const View vgrad = device_view(grad, "grad"), vvalues = *device_view(values, "values", vgrad);
          const View vcrow = *device_view(crow, "crow", vgrad), vcol = *device_view(col, "col", vgrad);
          const View vscratch = *device_view(scratch, "scratch", vgrad), vout = *device_view(out, "out", vgrad);
          void* stream = current_stream(vgrad);
          py::gil_scoped_release unlocked;
          block_sparse_linear_grad_input_cuda(vgrad, vvalues, vcrow, vcol, vscratch, vout, stream);
        });
  m.def("block_sparse_linear_grad_values",
        [](py::handle grad, py::handle x, py::handle crow, py::handle col, py::handle out, int64_t n, int64_t k) {
          const View vgrad = device_view(grad, "grad"), vx = *device_view(x, "x", vgrad);
          const View vcrow = *device_view(crow, "crow", vgrad), vcol = *device_view(col, "col", vgrad);
          const View vout = *device_view(out, "out", vgrad);
          void* stream = current_stream(vgrad);
          py::gil_scoped_release unlocked;
          block_sparse_linear_grad_values_cuda(vgrad, vx, vcrow, vcol, vout, n, k, stream);
        });
}

}  // namespace bigmodel
