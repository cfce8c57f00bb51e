// The compiled module bigmodel_ext._C_cuda.
#include <pybind11/pybind11.h>

#include "../../common/check.h"
#include "../tensor.h"

namespace py = pybind11;

namespace bigmodel {
void register_fused_dropout_cuda(py::module_& m);
}

PYBIND11_MODULE(_C_cuda, m) {
  using namespace bigmodel;
  py::register_local_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const TypeError& e) {
      PyErr_SetString(PyExc_TypeError, e.what());
    }
  });
  m.def("initialize", &set_exchange_api);
  register_fused_dropout_cuda(m);
}
