// Single tensor-core instructions: for tests, and for the comparison of the emulator with a GPU.
#include "../../cuda/fragments.h"

#include "device.h"

namespace py = pybind11;

namespace bigmodel {
namespace {

constexpr const char* kKinds[] = {"s8",           "bf16",        "f16", "sparse_s8", "sparse_bf16_0", "sparse_bf16_1",
                                  "sparse_f16_0", "sparse_f16_1"};

// 32-bit registers, [32 lanes or 128 threads, n].
uint32_t* registers(py::handle tensor, const char* name, int64_t n, int64_t threads = 32) {
  const View v = device_view(tensor, name);
  check_dtype(v, name, DType::i32);
  check_contiguous(v, name);
  check_shape(v, name, {threads, n});
  return v.as<uint32_t>();
}

MmaKind parse(const std::string& kind, int kinds) {
  int k = 0;
  while (k < kinds && kind != kKinds[k]) ++k;
  BIGMODEL_CHECK(k < kinds, "kind must be that of a product, got '", kind, "'");
  return static_cast<MmaKind>(k);
}

void run_mma(const std::string& kind, py::handle a, py::handle b, py::handle metadata, py::handle d) {
  const MmaKind parsed = parse(kind, 8);
  const View va = device_view(a, "a");
  mma_fragments(parsed, registers(a, "a", 4), registers(b, "b", parsed >= MmaKind::sparse_s8 ? 4 : 2),
                registers(metadata, "metadata", 1), registers(d, "d", 4), va.device, current_stream(va));
}

void run_load_matrix(bool transposed, py::handle image, py::handle offsets, py::handle out) {
  const View vimage = device_view(image, "image"), vout = device_view(out, "out");
  check_dtype(vimage, "image", DType::u8);
  check_contiguous(vimage, "image");
  check_shape(vimage, "image", {kFragmentImage});
  check_ndim(vout, "out", 2);
  const int64_t n = vout.sizes[1];
  BIGMODEL_CHECK(n == 1 || n == 2 || n == 4, "out must have 1, 2 or 4 columns, got ", n);
  load_matrix_fragments(static_cast<int>(n), transposed, vimage.data, registers(offsets, "offsets", 1),
                        registers(out, "out", n), vimage.device, current_stream(vimage));
}

void run_wgmma(const std::string& kind, int swizzle, int stride, int leading, int inside, py::handle image,
               py::handle d) {
  const View vimage = device_view(image, "image");
  check_dtype(vimage, "image", DType::u8);
  check_contiguous(vimage, "image");
  check_shape(vimage, "image", {kWgmmaImage});
  wgmma_fragments(parse(kind, 3), swizzle, stride, leading, inside, vimage.data, registers(d, "d", 32, 128),
                  vimage.device, current_stream(vimage));
}

}  // namespace

void register_fragments(py::module_& m) {
  m.def("mma_fragments", run_mma);
  m.def("load_matrix_fragments", run_load_matrix);
  m.def("wgmma_fragments", run_wgmma);
}

}  // namespace bigmodel
