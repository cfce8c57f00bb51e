#include "../cpu/peaks.h"

#include "tensor.h"

namespace py = pybind11;

namespace bigmodel {

void register_peaks(py::module_& m) {
  m.def(
      "peak_int8", [](int64_t iterations) { return peak_arithmetic(Peak::int8, iterations); },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "peak_fp32", [](int64_t iterations) { return peak_arithmetic(Peak::fp32, iterations); },
      py::call_guard<py::gil_scoped_release>());
  m.def("peak_read", [](py::handle x) {
    const View v = view(x, "x");
    py::gil_scoped_release unlocked;
    return peak_read(v);
  });
}

}  // namespace bigmodel
