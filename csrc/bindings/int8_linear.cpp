#include "../cpu/int8_linear.h"

#include "output.h"
#include "tensor.h"
#include "unlocked.h"

namespace py = pybind11;

namespace bigmodel {

void register_int8_linear(py::module_& m) {
  m.def("int8_linear", [](py::handle x, py::handle weight, py::handle weight_scale, py::handle bias, py::handle out,
                          py::handle activation, py::handle input_scale) {
    const DenseTensor dx = dense(x, "x"), dweight = dense(weight, "weight");
    const DenseTensor dscale = dense(weight_scale, "weight_scale");
    const std::optional<DenseTensor> dbias = optional_dense(bias, "bias");
    const std::optional<View> vbias = dbias ? std::optional<View>(dbias->view) : std::nullopt;
    const std::optional<DenseTensor> dinput = optional_dense(input_scale, "input_scale");
    const std::optional<View> vinput = dinput ? std::optional<View>(dinput->view) : std::nullopt;
    const View vout = output(out, "out");
    // The usual name is the interpreter's one copy of it, and known without being read.
    static PyObject* const none = PyUnicode_InternFromString("none");
    const char* name = activation.ptr() == none ? "none" : PyUnicode_AsUTF8(activation.ptr());
    if (!name) throw py::error_already_set();
    unlocked(dx.view.numel() + dweight.view.numel() + vout.numel(),
             [&] { int8_linear(dx.view, dweight.view, dscale.view, vbias, vout, name, vinput); });
  });
}

}  // namespace bigmodel
