#include "../../cuda/int8_weight_only_linear.h"

#include "../../common/round.h"
#include "linear_args.h"

namespace py = pybind11;

namespace bigmodel {

void register_int8_weight_only_linear_cuda(py::module_& m) {
  m.def("int8_weight_only_linear", [](py::handle x, py::handle weight, py::handle weight_scale, py::handle bias,
                                      py::handle out, const char* activation) {
    const View vx = device_view(x, "x"), w = *device_view(weight, "weight", vx);
    const View scale = *device_view(weight_scale, "weight_scale", vx);
    const LinearArgs args = linear_args(vx, device_view(bias, "bias", vx), *device_view(out, "out", vx), activation);
    check_dtype(w, "weight", DType::i8);
    check_shape(w, "packed weight", {ceil_div(args.n, 64), ceil_div(args.k, 4) + 1, 64, 4});
    check_contiguous(w, "weight");
    check_dtype(scale, "weight_scale", DType::f32);
    check_shape(scale, "weight_scale", {args.n});
    check_contiguous(scale, "weight_scale");
    BIGMODEL_CHECK(reinterpret_cast<uintptr_t>(w.data) % 16 == 0, "weight's address must be a multiple of 16");
    void* stream = current_stream(vx);
    py::gil_scoped_release unlocked;
    int8_weight_only_linear_cuda(args, w.as<int8_t>(), scale.as<float>(), vx.device, stream);
  });
}

}  // namespace bigmodel
