#include "../cpu/ising.h"

#include <pybind11/stl.h>

#include <vector>

#include "tensor.h"
#include "unlocked.h"

namespace py = pybind11;

namespace bigmodel {

void register_ising(py::module_& m) {
  m.def("ising_start", [](py::handle weight, py::handle factor, py::handle order, py::handle alpha, int64_t group_size,
                          py::handle codes) {
    const DenseTensor w = dense(weight, "weight"), l = dense(factor, "factor"), places = dense(order, "order");
    const DenseTensor scales = dense(alpha, "alpha");
    const View out = view(codes, "codes");
    unlocked(w.view.numel(), [&] { ising_start(w.view, l.view, places.view, scales.view, group_size, out); });
  });
  m.def("ising_descend",
        [](py::handle weight, py::handle moments, py::handle codes, py::handle alpha, int64_t group_size,
           const std::vector<double>& temperatures, bool spins, bool scales, int64_t seed) {
          const DenseTensor w = dense(weight, "weight"), h = dense(moments, "moments");
          const View vcodes = view(codes, "codes"), valpha = view(alpha, "alpha");
          unlocked(w.view.numel(), [&] {
            ising_descend(w.view, h.view, vcodes, valpha, group_size, temperatures.data(),
                          static_cast<int64_t>(temperatures.size()), spins, scales, seed);
          });
        });
}

}  // namespace bigmodel
