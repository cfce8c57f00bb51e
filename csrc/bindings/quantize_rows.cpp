#include "../cpu/quantize_rows.h"

#include "output.h"
#include "tensor.h"
#include "unlocked.h"

namespace py = pybind11;

namespace bigmodel {

void register_quantize_rows(py::module_& m) {
  m.def("quantize_rows", [](py::handle x, py::handle q, py::handle scale) {
    const DenseTensor dx = dense(x, "x");
    const View vq = output(q, "q"), vscale = view(scale, "scale");
    unlocked(dx.view.numel(), [&] { quantize_rows(dx.view, vq, vscale); });
  });
}

}  // namespace bigmodel
