#include "../../cuda/fused_dropout.h"

#include <optional>
#include <stdexcept>

#include "../../common/check.h"
#include "../tensor.h"

namespace py = pybind11;

namespace bigmodel {
namespace {

std::optional<View> cuda_view(py::handle tensor, const char* name, int device) {
  const auto v = optional_view(tensor, name, dlpack::kCUDA);
  BIGMODEL_CHECK(!v || v->device == device, name, " must be on x's device cuda:", device, ", got cuda:", v->device);
  return v;
}

void* current_stream(int device) {
  void* stream = nullptr;
  if (exchange_api().current_stream(dlpack::kCUDA, device, &stream) != 0) throw py::error_already_set();
  return stream;
}

using Kernel = void (*)(const DropoutArgs&, int, void*);

void run(Kernel kernel, py::handle x, py::handle bias, py::handle other, const char* other_name, py::handle seed,
         py::handle out, double p, const char* activation) {
  const View vx = view(x, "x", dlpack::kCUDA);
  const auto vother = cuda_view(other, other_name, vx.device), vseed = cuda_view(seed, "seed", vx.device);
  const DropoutArgs args = dropout_args(vx, cuda_view(bias, "bias", vx.device), vother, other_name, vseed,
                                        *cuda_view(out, "out", vx.device), p, activation);
  void* stream = current_stream(vx.device);
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
