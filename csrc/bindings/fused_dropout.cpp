#include "../cpu/fused_dropout.h"

#include <pybind11/stl.h>

#include <array>
#include <optional>

#include "tensor.h"

namespace py = pybind11;

namespace bigmodel {
namespace {

// Below this the kernel is faster than giving up the interpreter's lock and taking it again.
constexpr int64_t kSmall = 2048;

void run(void (*kernel)(const DropoutArgs&), const DropoutArgs& args) {
  if (args.numel <= kSmall) return kernel(args);
  py::gil_scoped_release unlocked;
  kernel(args);
}

// False for what the caller must treat first: strided tensors, float64, and a bias in a float type that is not read here.
bool ready(const View& x, const std::optional<View>& bias, const std::optional<View>& other) {
  if (x.dtype == DType::f64 || !x.contiguous() || (other && !other->contiguous())) return false;
  if (!bias) return true;
  const bool convertible = is_float(bias->dtype) || bias->dtype == DType::f64;
  return bias->contiguous() && (!convertible || bias->dtype == DType::f32 || bias->dtype == x.dtype);
}

}  // namespace

// Both return false, having done nothing, if an argument is not ready.
void register_fused_dropout(py::module_& m) {
  m.def("fused_dropout", [](py::handle x, py::handle bias, py::handle residual, py::handle seed, py::handle out,
                            double p, const char* activation) {
    const View vx = view(x, "x");
    const auto vbias = optional_view(bias, "bias"), vresidual = optional_view(residual, "residual");
    if (!ready(vx, vbias, vresidual)) return false;
    run(fused_dropout, dropout_args(vx, vbias, vresidual, "residual", optional_view(seed, "seed"), view(out, "out"), p,
                                    activation));
    return true;
  });
  m.def("fused_dropout_backward", [](py::handle grad, py::handle x, py::handle bias, py::handle seed, py::handle out,
                                     double p, const char* activation) {
    const View vx = view(x, "x"), vgrad = view(grad, "grad");
    const auto vbias = optional_view(bias, "bias");
    if (!ready(vx, vbias, vgrad)) return false;
    run(fused_dropout_backward,
        dropout_args(vx, vbias, vgrad, "grad", optional_view(seed, "seed"), view(out, "out"), p, activation));
    return true;
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
