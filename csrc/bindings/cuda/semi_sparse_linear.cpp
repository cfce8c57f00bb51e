#include "../../cuda/semi_sparse_linear.h"

#include "../../cuda/int8_semi_sparse_linear.h"
#include "device.h"

namespace py = pybind11;

namespace bigmodel {

void register_semi_sparse_linear_cuda(py::module_& m) {
  py::enum_<SemiShape>(m, "SemiShape")
      .value("automatic", SemiShape::automatic)
      .value("few_rows", SemiShape::few_rows)
      .value("some_rows", SemiShape::some_rows)
      .value("medium", SemiShape::medium)
      .value("large", SemiShape::large);
  m.def(
      "semi_sparse_linear",
      [](py::handle x, py::handle values, py::handle index, py::handle bias, py::handle out, SemiShape shape) {
        const View vx = device_view(x, "x");
        const auto vbias = device_view(bias, "bias", vx);
        const View vvalues = *device_view(values, "values", vx), vindex = *device_view(index, "index", vx);
        const View vout = *device_view(out, "out", vx);
        void* stream = current_stream(vx);
        py::gil_scoped_release unlocked;
        semi_sparse_linear_cuda(vx, vvalues, vindex, vbias ? &*vbias : nullptr, vout, shape, stream);
      },
      py::arg("x"), py::arg("values"), py::arg("index"), py::arg("bias"), py::arg("out"),
      py::arg("shape") = SemiShape::automatic);
  m.def("semi_sparse_linear_grad_input", [](py::handle grad, py::handle values, py::handle index, py::handle out) {
    const View vgrad = device_view(grad, "grad");
    const View vvalues = *device_view(values, "values", vgrad), vindex = *device_view(index, "index", vgrad);
    const View vout = *device_view(out, "out", vgrad);
    void* stream = current_stream(vgrad);
    py::gil_scoped_release unlocked;
    semi_sparse_linear_grad_input_cuda(vgrad, vvalues, vindex, vout, stream);
  });
  m.def("semi_sparse_linear_grad_values",
        [](py::handle grad, py::handle x, py::handle index, py::handle out, int64_t n, int64_t k) {
          const View vgrad = device_view(grad, "grad");
          const View vx = *device_view(x, "x", vgrad), vindex = *device_view(index, "index", vgrad);
          const View vout = *device_view(out, "out", vgrad);
          void* stream = current_stream(vgrad);
          py::gil_scoped_release unlocked;
          semi_sparse_linear_grad_values_cuda(vgrad, vx, vindex, vout, n, k, stream);
        });
  m.def(
      "int8_semi_sparse_linear",
      [](py::handle x, py::handle values, py::handle index, py::handle weight_scale, py::handle bias, py::handle out,
         const char* activation, py::handle q, py::handle scale, SemiShape shape) {
        const View vx = device_view(x, "x"), vvalues = *device_view(values, "values", vx);
        const View vindex = *device_view(index, "index", vx);
        const View vweight_scale = *device_view(weight_scale, "weight_scale", vx);
        const auto vbias = device_view(bias, "bias", vx);
        const View vout = *device_view(out, "out", vx), vq = *device_view(q, "q", vx);
        const View vscale = *device_view(scale, "scale", vx);
        void* stream = current_stream(vx);
        py::gil_scoped_release unlocked;
        int8_semi_sparse_linear_cuda(vx, vvalues, vindex, vweight_scale, vbias ? &*vbias : nullptr, vout, activation,
                                     vq, vscale, shape, stream);
      },
      py::arg("x"), py::arg("values"), py::arg("index"), py::arg("weight_scale"), py::arg("bias"), py::arg("out"),
      py::arg("activation"), py::arg("q"), py::arg("scale"), py::arg("shape") = SemiShape::automatic);
}

}  // namespace bigmodel
