#include "../cpu/fused_dropout.h"

#include <pybind11/stl.h>

#include <array>

#include "tensor.h"

namespace py = pybind11;

namespace bigmodel {

void register_fused_dropout(py::module_& m) {
  m.def("fused_dropout", [](py::handle x, py::handle bias, py::handle residual, py::handle seed, py::handle out,
                            double p, const std::string& activation) {
    const DropoutArgs args = dropout_args(view(x, "x"), optional_view(bias, "bias"), optional_view(residual, "residual"),
                                          "residual", optional_view(seed, "seed"), view(out, "out"), p, activation);
    py::gil_scoped_release unlocked;
    fused_dropout(args);
  });
  m.def("fused_dropout_backward", [](py::handle grad, py::handle x, py::handle bias, py::handle seed, py::handle out,
                                     double p, const std::string& activation) {
    const DropoutArgs args = dropout_args(view(x, "x"), optional_view(bias, "bias"), view(grad, "grad"), "grad",
                                          optional_view(seed, "seed"), view(out, "out"), p, activation);
    py::gil_scoped_release unlocked;
    fused_dropout_backward(args);
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
