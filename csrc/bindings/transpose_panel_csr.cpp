#include "../cpu/transpose_panel_csr.h"

#include <cstring>

#include "output.h"
#include "tensor.h"
#include "unlocked.h"

namespace py = pybind11;

namespace bigmodel {

void register_transpose_panel_csr(py::module_& m) {
  m.def("transpose_panel_csr",
        [](py::handle crow, py::handle col, py::handle order, int64_t n, int64_t k, int64_t panel, py::handle crow_t,
           py::handle col_t, py::handle order_t, py::handle source, int64_t panel_t) {
          const DenseTensor dcrow = dense(crow, "crow"), dcol = dense(col, "col");
          const std::optional<DenseTensor> dorder = optional_dense(order, "order");
          const View vcrow = view(crow_t, "crow_t"), vcol = view(col_t, "col_t"), vorder = view(order_t, "order_t");
          const View vsource = view(source, "source");
          unlocked(dcrow.view.numel() + dcol.view.numel(), [&] {
            transpose_panel_csr(dcrow.view, dcol.view, dorder ? &dorder->view : nullptr, n, k, panel, vcrow, vcol,
                                vorder, vsource, panel_t);
          });
        });
  m.def("same_bytes", [](py::handle a, py::handle b) {
    const DenseTensor da = dense(a, "a"), db = dense(b, "b");
    const View &va = da.view, &vb = db.view;
    if (va.dtype != vb.dtype || va.numel() != vb.numel()) return false;
    return va.numel() == 0 ||
           std::memcmp(va.data, vb.data, static_cast<size_t>(va.numel()) * item_bytes(va.dtype)) == 0;
  });
  m.def("permute_values", [](py::handle values, py::handle source, py::handle out) {
    const DenseTensor dvalues = dense(values, "values"), dsource = dense(source, "source");
    const View vout = view(out, "out");
    unlocked(dvalues.view.numel(), [&] { permute_values(dvalues.view, dsource.view, vout); });
  });
}

}  // namespace bigmodel
