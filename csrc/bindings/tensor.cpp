#include "tensor.h"

#include "../common/check.h"

namespace py = pybind11;

namespace bigmodel {
namespace {

const dlpack::ExchangeApi* api = nullptr;
PyTypeObject* tensor_type = nullptr;

DType dtype_of(dlpack::DataType t) {
  if (t.lanes != 1) return DType::unsupported;
  switch (t.code) {
    case dlpack::kFloat:
      return t.bits == 32 ? DType::f32 : t.bits == 64 ? DType::f64 : t.bits == 16 ? DType::f16 : DType::unsupported;
    case dlpack::kBfloat:
      return t.bits == 16 ? DType::bf16 : DType::unsupported;
    case dlpack::kUInt:
      return t.bits == 8 ? DType::u8 : DType::unsupported;
    case dlpack::kInt:
      return t.bits == 8    ? DType::i8
             : t.bits == 16 ? DType::i16
             : t.bits == 32 ? DType::i32
             : t.bits == 64 ? DType::i64
                            : DType::unsupported;
    default:
      return DType::unsupported;
  }
}

}  // namespace

void set_exchange_api(const py::type& type) {
  const py::object capsule = type.attr("__dlpack_c_exchange_api__");
  auto* table = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (!table) throw py::error_already_set();
  while (table && table->version_major != 1) table = table->previous;
  if (!table || !table->borrow)
    throw std::runtime_error("this torch offers no DLPack 1.x exchange table that lends tensors");
  api = table;
  tensor_type = reinterpret_cast<PyTypeObject*>(py::object(type).release().ptr());  // kept for the process's life
}

const dlpack::ExchangeApi& exchange_api() { return *api; }

View view(py::handle tensor, const char* name, dlpack::DeviceType device) {
  // The table may only be given objects of the type it was taken from; anything else is not a tensor.
  if (!PyObject_TypeCheck(tensor.ptr(), tensor_type))
    throw TypeError(message(name, " must be a torch.Tensor, got ", Py_TYPE(tensor.ptr())->tp_name));
  dlpack::Tensor t;
  if (api->borrow(tensor.ptr(), &t) != 0) throw py::error_already_set();
  if (t.device.type != device)
    throw TypeError(message(name, device == dlpack::kCPU ? " must be on the CPU" : " must be on a CUDA device"));
  if (t.ndim > kMaxDims) throw std::invalid_argument(message(name, " has ", t.ndim, " dimensions; at most ", kMaxDims));
  View v;
  v.data = static_cast<char*>(t.data) + t.byte_offset;
  v.dtype = dtype_of(t.dtype);
  v.ndim = t.ndim;
  int64_t stride = 1;
  for (int d = t.ndim - 1; d >= 0; --d) {
    v.sizes[d] = t.shape[d];
    v.strides[d] = t.strides ? t.strides[d] : stride;
    stride *= t.shape[d];
  }
  return v;
}

std::optional<View> optional_view(py::handle tensor, const char* name, dlpack::DeviceType device) {
  if (tensor.is_none()) return std::nullopt;
  return view(tensor, name, device);
}

DenseTensor dense(py::handle tensor, const char* name) {
  DenseTensor result{{}, view(tensor, name)};
  if (result.view.contiguous()) return result;
  result.copy = tensor.attr("contiguous")();
  result.view = view(result.copy, name);
  return result;
}

std::optional<DenseTensor> optional_dense(py::handle tensor, const char* name) {
  if (tensor.is_none()) return std::nullopt;
  return dense(tensor, name);
}

}  // namespace bigmodel
