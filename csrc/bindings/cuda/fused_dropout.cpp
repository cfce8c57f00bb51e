#include "../../cuda/fused_dropout.h"

#include "device.h"

namespace py = pybind11;

namespace bigmodel {
namespace {

using Kernel = void (*)(const DropoutArgs&, int, void*);

void run(Kernel kernel, py::handle x, py::handle bias, py::handle other, const char* other_name, py::handle seed,
         py::handle out, double p, const char* activation) {
  const View vx = device_view(x, "x");
  const auto vother = device_view(other, other_name, vx), vseed = device_view(seed, "seed", vx);
  const DropoutArgs args = dropout_args(vx, device_view(bias, "bias", vx), vother, other_name, vseed,
                                        *device_view(out, "out", vx), p, activation);
  void* stream = current_stream(vx);
  py::gil_scoped_release unlocked;
  kernel(args, vx.device, stream);
}

}  // namespace

void register_fused_dropout_cuda(py::module_& m) {
  m.def("fused_dropout", [](py::handle x, py::handle bias, py::handle residual, py::handle seed, py::handle out,
                            double p, const char* activation) {
    run(fused_dropout_cuda, x, bias, residual, "residual", seed, out, p, activation);
  });
  m.def("fused_dropout_backward", [](py::handle grad, py::handle x, py::handle bias, py::handle seed, py::handle out,
                                     double p, const char* activation) {
    run(fused_dropout_backward_cuda, x, bias, grad, "grad", seed, out, p, activation);
  });
}

}  // namespace bigmodel
