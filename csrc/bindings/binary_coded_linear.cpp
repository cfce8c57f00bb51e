#include "../cpu/binary_coded_linear.h"

#include "output.h"
#include "tensor.h"
#include "unlocked.h"

namespace py = pybind11;

namespace bigmodel {

void register_binary_coded_linear(py::module_& m) {
  m.def("binary_coded_linear", [](py::handle x, py::handle packed, py::handle scales, py::handle bias, py::handle out,
                                  int64_t group_size, const char* activation) {
    const DenseTensor dx = dense(x, "x"), dpacked = dense(packed, "packed"), dscales = dense(scales, "scales");
    const std::optional<DenseTensor> dbias = optional_dense(bias, "bias");
    const std::optional<View> vbias = dbias ? std::optional<View>(dbias->view) : std::nullopt;
    const View vout = output(out, "out");
    unlocked(dx.view.numel() + 8 * dpacked.view.numel() + vout.numel(),
             [&] { binary_coded_linear(dx.view, dpacked.view, dscales.view, vbias, vout, group_size, activation); });
  });
}

}  // namespace bigmodel
