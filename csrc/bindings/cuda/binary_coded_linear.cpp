#include "../../cuda/binary_coded_linear.h"

#include <algorithm>

#include "../../common/round.h"
#include "linear_args.h"

namespace py = pybind11;

namespace bigmodel {
namespace {

// A group of more than K inputs is one of K; huge ones would overflow.
int64_t group_of(int64_t k, int64_t group_size) {
  BIGMODEL_CHECK(group_size >= 8 && group_size % 8 == 0, "group_size must be a positive multiple of 8, got ",
                 group_size);
  return std::min(group_size, std::max<int64_t>(1, ceil_div(k, 16)) * 16);
}

void run(py::handle x, py::handle packed, py::handle scales, py::handle bias, py::handle workspace, py::handle out,
         int64_t group_size, const char* activation) {
  const View vx = device_view(x, "x"), signs = *device_view(packed, "packed", vx);
  const View alpha = *device_view(scales, "scales", vx), room = *device_view(workspace, "workspace", vx);
  BinaryCodedArgs args{};
  args.linear = linear_args(vx, device_view(bias, "bias", vx), *device_view(out, "out", vx), activation);
  const int64_t k = args.linear.k, panels = ceil_div(args.linear.n, 64);
  args.group_size = group_of(k, group_size);
  check_dtype(signs, "packed", DType::u8);
  check_ndim(signs, "packed", 5);
  args.bits = static_cast<int>(signs.sizes[2]);
  BIGMODEL_CHECK(args.bits >= 1 && args.bits <= 8, "bits must be in [1, 8], got ", args.bits);
  const int64_t words = k / args.group_size * ceil_div(args.group_size, 16) + ceil_div(k % args.group_size, 16);
  check_shape(signs, "packed", {panels, words, args.bits, 64, 2});
  check_contiguous(signs, "packed");
  check_dtype(alpha, "scales", DType::f16);
  check_shape(alpha, "scales", {panels, ceil_div(k, args.group_size), args.bits, 64});
  check_contiguous(alpha, "scales");
  check_dtype(room, "workspace", DType::u8);
  const int64_t needed = binary_coded_workspace(args.linear.m, k, args.group_size);
  BIGMODEL_CHECK(room.numel() >= needed, "workspace must have ", needed, " bytes, got ", room.numel());
  for (const View* v : {&signs, &alpha, &room})
    BIGMODEL_CHECK(reinterpret_cast<uintptr_t>(v->data) % 16 == 0,
                   "packed, scales and workspace must be aligned to 16");
  args.packed = signs.as<uint8_t>();
  args.scales = alpha.as<uint16_t>();
  args.workspace = room.data;
  void* stream = current_stream(vx);
  py::gil_scoped_release unlocked;
  binary_coded_linear_cuda(args, vx.device, stream);
}

}  // namespace

void register_binary_coded_linear_cuda(py::module_& m) {
  m.def("binary_coded_workspace",
        [](int64_t m, int64_t k, int64_t group_size) { return binary_coded_workspace(m, k, group_of(k, group_size)); });
  m.def("binary_coded_linear", &run);
}

}  // namespace bigmodel
