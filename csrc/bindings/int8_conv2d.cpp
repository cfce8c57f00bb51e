#include "../cpu/int8_conv2d.h"

#include "conv_window.h"
#include "output.h"
#include "tensor.h"
#include "unlocked.h"

namespace py = pybind11;

namespace bigmodel {

void register_int8_conv2d(py::module_& m) {
  m.def("int8_conv2d", [](py::handle x, py::handle weight, py::handle weight_scale, py::handle bias, py::handle out,
                          const py::tuple& window, bool channels_last) {
    const DenseTensor dweight = dense(weight, "weight"), dscale = dense(weight_scale, "weight_scale");
    const std::optional<DenseTensor> dbias = optional_dense(bias, "bias");
    const std::optional<View> vbias = dbias ? std::optional<View>(dbias->view) : std::nullopt;
    const View vx = view(x, "x"), vout = output(out, "out");
    const ConvWindow w = conv_window(window);
    unlocked(vx.numel() + dweight.view.numel() + vout.numel(),
             [&] { int8_conv2d(vx, dweight.view, dscale.view, vbias, vout, w, channels_last); });
  });
}

}  // namespace bigmodel
