#include "../../cuda/sparse_linear.h"

#include "device.h"

namespace py = pybind11;

namespace bigmodel {
namespace {

const View* sparse_argument(const std::optional<View>& v) { return v ? &*v : nullptr; }

void run_sparse_derive(py::handle crow, py::handle col, py::handle rows, py::handle masks, py::handle units,
                       py::handle wrong, int64_t n, int64_t k, int64_t panel) {
  const View c = device_view(crow, "crow");
  const auto vcol = device_view(col, "col", c), vrows = device_view(rows, "rows", c),
             vmasks = device_view(masks, "masks", c), vunits = device_view(units, "units", c),
             vwrong = device_view(wrong, "wrong", c);
  void* stream = current_stream(c);
  py::gil_scoped_release unlocked;
  sparse_derive_cuda(c, *vcol, sparse_argument(vrows), sparse_argument(vmasks), sparse_argument(vunits), *vwrong, n, k,
                     panel, stream);
}

void run_sparse_rows(py::handle x, py::handle values, py::handle col, py::handle runs, int64_t panel, py::handle bias,
                     py::handle scale, py::handle weight_scale, py::handle out, const char* activation) {
  const View vx = device_view(x, "x");
  const auto vvalues = device_view(values, "values", vx), vcol = device_view(col, "col", vx),
             vruns = device_view(runs, "runs", vx), vbias = device_view(bias, "bias", vx),
             vscale = device_view(scale, "scale", vx), vweight_scale = device_view(weight_scale, "weight_scale", vx),
             vout = device_view(out, "out", vx);
  const SparseEpilogue epilogue{sparse_argument(vbias), sparse_argument(vscale), sparse_argument(vweight_scale),
                                activation};
  void* stream = current_stream(vx);
  py::gil_scoped_release unlocked;
  sparse_rows_cuda(vx, *vvalues, *vcol, *vruns, panel, epilogue, *vout, stream);
}

void run_sparse_bits(py::handle x, py::handle values, py::handle masks, py::handle units, py::handle bias,
                     py::handle out, const char* activation) {
  const View vx = device_view(x, "x");
  const auto vvalues = device_view(values, "values", vx), vmasks = device_view(masks, "masks", vx),
             vunits = device_view(units, "units", vx), vbias = device_view(bias, "bias", vx),
             vout = device_view(out, "out", vx);
  void* stream = current_stream(vx);
  py::gil_scoped_release unlocked;
  const SparseMasks w{*vmasks, *vunits, vx.sizes[vx.ndim - 1]};
  const SparseEpilogue epilogue{sparse_argument(vbias), nullptr, nullptr, activation};
  const bool few = vx.sizes[0] <= kFewRows;
  few ? sparse_bits_cuda(vx, *vvalues, w, epilogue, *vout, stream)
      : sparse_tiles_cuda(SparseProduct::forward, vx, nullptr, &*vvalues, w, epilogue, *vout, stream);
}

void run_sparse_int8_tiles(py::handle x, py::handle values, py::handle masks, py::handle units, py::handle bias,
                           py::handle scale, py::handle weight_scale, py::handle out, const char* activation) {
  const View vx = device_view(x, "x");
  const auto vvalues = device_view(values, "values", vx), vmasks = device_view(masks, "masks", vx),
             vunits = device_view(units, "units", vx), vbias = device_view(bias, "bias", vx),
             vscale = device_view(scale, "scale", vx), vweight_scale = device_view(weight_scale, "weight_scale", vx),
             vout = device_view(out, "out", vx);
  const SparseEpilogue epilogue{sparse_argument(vbias), sparse_argument(vscale), sparse_argument(vweight_scale),
                                activation};
  void* stream = current_stream(vx);
  py::gil_scoped_release unlocked;
  sparse_int8_tiles_cuda(vx, *vvalues, {*vmasks, *vunits, vx.sizes[vx.ndim - 1]}, epilogue, *vout, stream);
}

void run_sparse_grad_input(py::handle grad, py::handle values, py::handle masks, py::handle units, py::handle out) {
  const View g = device_view(grad, "grad");
  const auto vvalues = device_view(values, "values", g), vmasks = device_view(masks, "masks", g),
             vunits = device_view(units, "units", g), vout = device_view(out, "out", g);
  void* stream = current_stream(g);
  py::gil_scoped_release unlocked;
  const SparseMasks w{*vmasks, *vunits, vout->sizes[vout->ndim - 1]};
  sparse_tiles_cuda(SparseProduct::grad_input, g, nullptr, &*vvalues, w, {nullptr, nullptr, nullptr, "none"}, *vout,
                    stream);
}

void run_sparse_grad_values(py::handle grad, py::handle x, py::handle masks, py::handle units, py::handle out) {
  const View g = device_view(grad, "grad");
  const auto vx = device_view(x, "x", g), vmasks = device_view(masks, "masks", g),
             vunits = device_view(units, "units", g), vout = device_view(out, "out", g);
  void* stream = current_stream(g);
  py::gil_scoped_release unlocked;
  const SparseMasks w{*vmasks, *vunits, vx->sizes[vx->ndim - 1]};
  sparse_tiles_cuda(SparseProduct::grad_values, g, &*vx, nullptr, w, {nullptr, nullptr, nullptr, "none"}, *vout,
                    stream);
}

void run_sparse_dense(py::handle values, py::handle masks, py::handle units, py::handle dense, bool spread) {
  const View v = device_view(values, "values");
  const auto vmasks = device_view(masks, "masks", v), vunits = device_view(units, "units", v),
             vdense = device_view(dense, "dense", v);
  void* stream = current_stream(v);
  py::gil_scoped_release unlocked;
  sparse_dense_cuda(v, {*vmasks, *vunits, vdense->sizes[vdense->ndim - 1]}, *vdense, spread, stream);
}

}  // namespace

void register_sparse_linear_cuda(py::module_& m) {
  m.def("sparse_derive", run_sparse_derive);
  m.def("sparse_rows", run_sparse_rows);
  m.def("sparse_bits", run_sparse_bits);
  m.def("sparse_int8_tiles", run_sparse_int8_tiles);
  m.def("sparse_grad_input", run_sparse_grad_input);
  m.def("sparse_grad_values", run_sparse_grad_values);
  m.def("sparse_dense", run_sparse_dense);
}

}  // namespace bigmodel
