#include "../cpu/int8_mm.h"

#include "output.h"
#include "tensor.h"
#include "unlocked.h"

namespace py = pybind11;

namespace bigmodel {

void register_int8_mm(py::module_& m) {
  m.def("int8_mm", [](py::handle a, py::handle b, py::handle out) {
    const DenseTensor da = dense(a, "a"), db = dense(b, "b");
    const View vout = output(out, "out");
    unlocked(da.view.numel() + db.view.numel() + vout.numel(), [&] { int8_mm(da.view, db.view, vout); });
  });
}

}  // namespace bigmodel
