#include "check.h"

namespace bigmodel {

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "float32";
    case DType::f64:
      return "float64";
    case DType::f16:
      return "float16";
    case DType::bf16:
      return "bfloat16";
    case DType::i8:
      return "int8";
    case DType::u8:
      return "uint8";
    case DType::i16:
      return "int16";
    case DType::i32:
      return "int32";
    case DType::i64:
      return "int64";
    case DType::unsupported:
      break;
  }
  return "an unsupported dtype";
}

std::string shape_string(const View& v) {
  std::ostringstream out;
  out << '[';
  for (int d = 0; d < v.ndim; ++d) out << (d ? ", " : "") << v.sizes[d];
  out << ']';
  return out.str();
}

void check_dtype(const View& v, const char* name, DType expected) {
  if (v.dtype != expected)
    throw TypeError(message(name, " must be ", dtype_name(expected), ", got ", dtype_name(v.dtype)));
}

void check_float(const View& v, const char* name) {
  if (!is_float(v.dtype))
    throw TypeError(message(name, " must be float32, bfloat16 or float16, got ", dtype_name(v.dtype)));
}

void check_ndim(const View& v, const char* name, int expected) {
  BIGMODEL_CHECK(v.ndim == expected, name, " must have ", expected, " dimensions, got shape ", shape_string(v));
}

void check_contiguous(const View& v, const char* name) {
  BIGMODEL_CHECK(v.contiguous(), name, " must be contiguous, got shape ", shape_string(v));
}

void check_shape(const View& v, const char* name, std::initializer_list<int64_t> expected) {
  View wanted = {};
  for (const int64_t size : expected) wanted.sizes[wanted.ndim++] = size;
  bool same = v.ndim == wanted.ndim;
  for (int d = 0; same && d < v.ndim; ++d) same = v.sizes[d] == wanted.sizes[d];
  BIGMODEL_CHECK(same, name, " must have shape ", shape_string(wanted), ", got ", shape_string(v));
}

void check_size(const View& v, const char* name, int dim, int64_t expected) {
  BIGMODEL_CHECK(v.sizes[dim] == expected, name, " must have size ", expected, " in dimension ", dim, ", got shape ",
                 shape_string(v));
}

}  // namespace bigmodel
