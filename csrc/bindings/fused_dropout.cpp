#include "../cpu/fused_dropout.h"

#include <pybind11/stl.h>

#include <array>
#include <optional>

#include "../common/check.h"
#include "tensor.h"
#include "unlocked.h"

namespace py = pybind11;

namespace bigmodel {
namespace {

void run(void (*kernel)(const DropoutArgs&), const DropoutArgs& args) {
  unlocked(args.numel, [&] { kernel(args); });
}

// The kernel reads a bias in float32 or in x's dtype; other floats become float32.
std::optional<DenseTensor> readable_bias(py::handle bias, DType x) {
  if (bias.is_none()) return std::nullopt;
  const DType dtype = view(bias, "bias").dtype;
  const bool convert = dtype != DType::f32 && dtype != x && (is_float(dtype) || dtype == DType::f64);
  return dense(convert ? bias.attr("float")() : py::reinterpret_borrow<py::object>(bias), "bias");
}

std::optional<View> view_of(const std::optional<DenseTensor>& tensor) {
  return tensor ? std::optional<View>(tensor->view) : std::nullopt;
}

float* sums_of(const View& sums, const char* name, int64_t numel) {
  check_dtype(sums, name, DType::f32);
  check_contiguous(sums, name);
  BIGMODEL_CHECK(sums.numel() == numel, name, " must have ", numel, " elements, got shape ", shape_string(sums));
  return sums.as<float>();
}

}  // namespace

void register_fused_dropout(py::module_& m) {
  m.def("fused_dropout", [](py::handle x, py::handle bias, py::handle residual, py::handle seed, py::handle out,
                            double p, const char* activation) {
    const DenseTensor dx = dense(x, "x");
    const auto dbias = readable_bias(bias, dx.view.dtype), dresidual = optional_dense(residual, "residual");
    run(fused_dropout, dropout_args(dx.view, view_of(dbias), view_of(dresidual), "residual",
                                    optional_view(seed, "seed"), view(out, "out"), p, activation));
  });
  m.def("fused_dropout_backward", [](py::handle grad, py::handle x, py::handle bias, py::handle seed, py::handle out,
                                     double p, const char* activation) {
    const DenseTensor dx = dense(x, "x"), dgrad = dense(grad, "grad");
    const auto dbias = readable_bias(bias, dx.view.dtype);
    run(fused_dropout_backward, dropout_args(dx.view, view_of(dbias), dgrad.view, "grad", optional_view(seed, "seed"),
                                             view(out, "out"), p, activation));
  });
  m.def("fused_dropout_backward_bias", [](py::handle grad, py::handle x, py::handle bias, py::handle seed,
                                          py::handle out, py::handle dbias, double p, const char* activation) {
    const DenseTensor dx = dense(x, "x"), dgrad = dense(grad, "grad");
    const auto readable = readable_bias(bias, dx.view.dtype);
    const DropoutArgs args = dropout_args(dx.view, view_of(readable), dgrad.view, "grad", optional_view(seed, "seed"),
                                          view(out, "out"), p, activation);
    float* sums = sums_of(view(dbias, "dbias"), "dbias", args.features);
    unlocked(args.numel, [&] { fused_dropout_backward_bias(args, sums); });
  });
  // For tests only: the mask far into a tensor too large to hold, and known answers.
  m.def("fused_dropout_at", [](py::handle x, py::handle seed, py::handle out, double p, uint64_t first_block) {
    DropoutArgs args = dropout_args(view(x, "x"), std::nullopt, std::nullopt, "residual", view(seed, "seed"),
                                    view(out, "out"), p, "none");
    args.first_block = first_block;
    fused_dropout(args);
  });
  m.def("philox_4x32", [](std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
    const PhiloxBlock block = philox_4x32({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
    return std::array<uint32_t, 4>{block.word[0], block.word[1], block.word[2], block.word[3]};
  });
}

}  // namespace bigmodel
