#include "../cpu/pack_panel_csr.h"

#include "tensor.h"
#include "unlocked.h"

namespace py = pybind11;

namespace bigmodel {

void register_pack_panel_csr(py::module_& m) {
  m.def("count_panel_csr", [](py::handle weight, py::handle mask, int64_t panel, py::handle crow, py::handle order) {
    const DenseTensor w = dense(weight, "weight");
    const std::optional<DenseTensor> kept = optional_dense(mask, "mask");
    const View vcrow = view(crow, "crow");
    const std::optional<View> vorder = optional_view(order, "order");
    int64_t stored = 0;
    unlocked(w.view.numel(), [&] {
      stored = count_panel_csr(w.view, kept ? &kept->view : nullptr, panel, vcrow, vorder ? &*vorder : nullptr);
    });
    return stored;
  });
  m.def("fill_panel_csr", [](py::handle weight, py::handle mask, int64_t panel, py::handle crow, py::handle order,
                             py::handle values, py::handle col) {
    const DenseTensor w = dense(weight, "weight");
    const std::optional<DenseTensor> kept = optional_dense(mask, "mask");
    const View vcrow = view(crow, "crow"), vvalues = view(values, "values"), vcol = view(col, "col");
    const std::optional<View> vorder = optional_view(order, "order");
    unlocked(w.view.numel(), [&] {
      fill_panel_csr(w.view, kept ? &kept->view : nullptr, panel, vcrow, vorder ? &*vorder : nullptr, vvalues, vcol);
    });
  });
}

}  // namespace bigmodel
