#include "../../cuda/int8_linear.h"

#include "device.h"

namespace py = pybind11;

namespace bigmodel {
namespace {

// Kernel, splits, bytes of workspace.
py::tuple int8_plan(int64_t m, int64_t n, int64_t k, bool floats, int device, const std::string& kernel, int splits) {
  const Int8Sizes sizes = {m, n, k, floats};
  Int8Plan chosen = {Int8Kernel::gemv, splits};
  if (kernel.empty()) {
    chosen = plan_int8_cuda(sizes, device);
  } else {
    int i = 0;
    while (i < kInt8Kernels && kernel != kInt8KernelNames[i]) ++i;
    chosen.kernel = static_cast<Int8Kernel>(i);
  }
  check_plan_cuda(chosen, sizes, device);
  return py::make_tuple(static_cast<int>(chosen.kernel), chosen.splits, int8_workspace(chosen, sizes).bytes);
}

Int8Launch int8_launch(const py::tuple& plan, py::handle workspace, const View& x) {
  const View v = *device_view(workspace, "workspace", x);
  check_dtype(v, "workspace", DType::u8);
  check_contiguous(v, "workspace");
  return {{static_cast<Int8Kernel>(plan[0].cast<int>()), plan[1].cast<int>()},
          v.data,
          static_cast<size_t>(v.numel()),
          current_stream(x)};
}

}  // namespace

void register_int8_linear_cuda(py::module_& m) {
  m.def("int8_kernel_names", [] {
    py::tuple names(kInt8Kernels);
    for (int i = 0; i < kInt8Kernels; ++i) names[static_cast<size_t>(i)] = kInt8KernelNames[i];
    return names;
  });
  // Chosen for the sizes, or, for tests and measurements, a kernel by name.
  m.def("int8_plan", int8_plan, py::arg("m"), py::arg("n"), py::arg("k"), py::arg("floats"), py::arg("device"),
        py::arg("kernel") = "", py::arg("splits") = 1);
  m.def("int8_linear", [](py::handle x, py::handle weight, py::handle weight_scale, py::handle bias, py::handle out,
                          const char* activation, py::handle input_scale, const py::tuple& plan, py::handle workspace) {
    const View vx = device_view(x, "x");
    const auto vbias = device_view(bias, "bias", vx), vinput = device_view(input_scale, "input_scale", vx);
    const View vweight = *device_view(weight, "weight", vx), vscale = *device_view(weight_scale, "weight_scale", vx);
    const View vout = *device_view(out, "out", vx);
    const Int8Launch launch = int8_launch(plan, workspace, vx);
    py::gil_scoped_release unlocked;
    int8_linear_cuda(vx, vweight, vscale, vbias, vout, activation, vinput, launch);
  });
  m.def("int8_mm", [](py::handle a, py::handle b, py::handle out, const py::tuple& plan, py::handle workspace) {
    const View va = device_view(a, "a"), vb = *device_view(b, "b", va), vout = *device_view(out, "out", va);
    const Int8Launch launch = int8_launch(plan, workspace, va);
    py::gil_scoped_release unlocked;
    int8_mm_cuda(va, vb, vout, launch);
  });
  m.def("quantize_rows", [](py::handle x, py::handle q, py::handle scale) {
    const View vx = device_view(x, "x"), vq = *device_view(q, "q", vx), vscale = *device_view(scale, "scale", vx);
    void* stream = current_stream(vx);
    py::gil_scoped_release unlocked;
    quantize_rows_cuda(vx, vq, vscale, stream);
  });
}

}  // namespace bigmodel
