// The compiled module bigmodel_ext._C: one register_<op> per op, and the few calls that set it up.
#include <pybind11/pybind11.h>

#include "../common/check.h"
#include "../common/pages.h"
#include "../common/parallel.h"
#include "../cpu/isa.h"
#include "tensor.h"

namespace py = pybind11;

namespace bigmodel {
void register_int8_linear(py::module_& m);
void register_binary_coded_linear(py::module_& m);
void register_int8_weight_only_linear(py::module_& m);
void register_int8_mm(py::module_& m);
void register_int8_conv2d(py::module_& m);
void register_fused_dropout(py::module_& m);
void register_fused_dropout_norm(py::module_& m);
void register_peaks(py::module_& m);
void register_quantize_rows(py::module_& m);
void register_int8_sparse_linear(py::module_& m);
void register_sparse_linear(py::module_& m);
void register_sparse_conv2d(py::module_& m);
void register_pack_panel_csr(py::module_& m);
void register_transpose_panel_csr(py::module_& m);
void register_block_sparse_linear(py::module_& m);
void register_semi_sparse_linear(py::module_& m);
void register_ising(py::module_& m);
}  // namespace bigmodel

PYBIND11_MODULE(_C, m) {
  using namespace bigmodel;
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const TypeError& e) {
      PyErr_SetString(PyExc_TypeError, e.what());
    }
  });
  m.def("initialize", [](const py::type& tensor_type, uintptr_t parallel_for, uintptr_t num_threads) {
    set_exchange_api(tensor_type);
    set_thread_pool(reinterpret_cast<ParallelFor>(parallel_for), reinterpret_cast<GetNumThreads>(num_threads));
  });
  m.def("detected_isa", [] { return isa_name(detected_isa()); });
  m.def("active_isa", [] { return isa_name(active_isa()); });
  m.def("set_active_isa", &set_active_isa);
  m.def("kernel_isa", [](const std::string& op) { return isa_name(kernel_isa(op)); });
  m.def("num_threads", &num_threads);
  m.def("about_to_write",
        [](uintptr_t address, size_t bytes) { about_to_write(reinterpret_cast<void*>(address), bytes); });
  register_int8_linear(m);
  register_binary_coded_linear(m);
  register_int8_weight_only_linear(m);
  register_int8_mm(m);
  register_int8_conv2d(m);
  register_fused_dropout(m);
  register_fused_dropout_norm(m);
  register_peaks(m);
  register_quantize_rows(m);
  register_int8_sparse_linear(m);
  register_sparse_linear(m);
  register_sparse_conv2d(m);
  register_pack_panel_csr(m);
  register_transpose_panel_csr(m);
  register_block_sparse_linear(m);
  register_semi_sparse_linear(m);
  register_ising(m);
}
