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
  if (t.ndim > 0 && !t.strides) throw std::invalid_argument(message(name, " has no strides"));
  View v;
  v.data = static_cast<char*>(t.data) + t.byte_offset;
  v.dtype = dtype_of(t.dtype);
  v.ndim = t.ndim;
  v.device = t.device.type == dlpack::kCPU ? 0 : t.device.id;
  v.sizes = t.shape;
  v.strides = t.strides;
  if (!t.data && v.numel() > 0) throw std::invalid_argument(message(name, " has no memory of its own"));
  return v;
}

std::optional<View> optional_view(py::handle tensor, const char* name, dlpack::DeviceType device) {
  if (tensor.is_none()) return std::nullopt;
  return view(tensor, name, device);
}

namespace {

// Whether the memory holds the values' negatives (as in z.conj().imag): torch's dispatcher resolves that, but not every
// call comes through it.
bool negated(py::handle tensor) {
  static PyObject* const name = PyUnicode_InternFromString("is_neg");
  const auto result = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor.ptr(), name));
  if (!result) throw py::error_already_set();
  return result.ptr() == Py_True;
}

}  // namespace

DenseTensor dense(py::handle tensor, const char* name) {
  DenseTensor result{py::reinterpret_borrow<py::object>(tensor), view(tensor, name)};
  if (is_float(result.view.dtype) && negated(tensor)) {
    result.owner = tensor.attr("resolve_neg")();
    result.view = view(result.owner, name);
  }
  if (result.view.contiguous()) return result;
  result.owner = result.owner.attr("contiguous")();
  result.view = view(result.owner, name);
  return result;
}

std::optional<DenseTensor> optional_dense(py::handle tensor, const char* name) {
  if (tensor.is_none()) return std::nullopt;
  return dense(tensor, name);
}

}  // namespace bigmodel
