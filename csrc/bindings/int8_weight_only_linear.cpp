#include "../cpu/int8_weight_only_linear.h"

#include "output.h"
#include "tensor.h"
#include "unlocked.h"

namespace py = pybind11;

namespace bigmodel {

void register_int8_weight_only_linear(py::module_& m) {
  m.def("int8_weight_only_linear", [](py::handle x, py::handle weight, py::handle weight_scale, py::handle bias,
                                      py::handle out, const std::string& activation) {
    const DenseTensor dx = dense(x, "x"), dweight = dense(weight, "weight");
    const DenseTensor dscale = dense(weight_scale, "weight_scale");
    const std::optional<DenseTensor> dbias = optional_dense(bias, "bias");
    const std::optional<View> vbias = dbias ? std::optional<View>(dbias->view) : std::nullopt;
    const View vout = output(out, "out");
    unlocked(dx.view.numel() + dweight.view.numel() + vout.numel(),
             [&] { int8_weight_only_linear(dx.view, dweight.view, dscale.view, vbias, vout, activation.c_str()); });
  });
}

}  // namespace bigmodel
