// The compiled modules bigmodel_ext._C_cuda and, from the same sources on the emulator, bigmodel_ext._C_emulated.
#include <pybind11/pybind11.h>

#include <sstream>
#include <string>

#include "../../common/check.h"
#include "../tensor.h"

#ifndef BIGMODEL_CUDA_ARCHITECTURES
#define BIGMODEL_CUDA_ARCHITECTURES ""
#endif

namespace py = pybind11;

namespace bigmodel {
void register_fused_dropout_cuda(py::module_& m);
void register_sparse_linear_cuda(py::module_& m);
void register_block_sparse_linear_cuda(py::module_& m);
void register_semi_sparse_linear_cuda(py::module_& m);
void register_int8_linear_cuda(py::module_& m);
void register_int8_weight_only_linear_cuda(py::module_& m);
void register_binary_coded_linear_cuda(py::module_& m);
void register_fused_dropout_norm_cuda(py::module_& m);
void register_emulator(py::module_& m);
void register_fragments(py::module_& m);
}  // namespace bigmodel

#if defined(BIGMODEL_EMULATED)
PYBIND11_MODULE(_C_emulated, m) {
  bigmodel::register_emulator(m);
#else
PYBIND11_MODULE(_C_cuda, m) {
#endif
  using namespace bigmodel;
  py::register_local_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const TypeError& e) {
      PyErr_SetString(PyExc_TypeError, e.what());
    }
  });
  m.def("initialize", &set_exchange_api);
  py::list architectures;
  std::istringstream names(BIGMODEL_CUDA_ARCHITECTURES);
  for (std::string name; std::getline(names, name, ',');) architectures.append(name);
  m.attr("ARCHITECTURES") = architectures;  // that the kernels were built for, as nvcc names them
  register_fragments(m);
  register_fused_dropout_cuda(m);
  register_sparse_linear_cuda(m);
  register_block_sparse_linear_cuda(m);
  register_semi_sparse_linear_cuda(m);
  register_int8_linear_cuda(m);
  register_int8_weight_only_linear_cuda(m);
  register_binary_coded_linear_cuda(m);
  register_fused_dropout_norm_cuda(m);
}
