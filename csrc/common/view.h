// A tensor as kernels see it: address, dtype, sizes and strides, nothing of the framework.
#pragma once

#include <cstdint>

namespace bigmodel {

enum class DType : uint8_t { f32, f64, f16, bf16, i8, u8, i16, i32, i64, unsupported };

struct View {
  void* data;
  DType dtype;
  int ndim;
  int device;              // index among devices of its kind; 0 on the CPU
  const int64_t* sizes;    // these two are the framework's own arrays: copying them would cost more than all the rest
  const int64_t* strides;  // in elements

  int64_t numel() const {
    int64_t n = 1;
    for (int d = 0; d < ndim; ++d) n *= sizes[d];
    return n;
  }

  bool contiguous() const {
    if (numel() == 0) return true;  // as torch has it, whatever the strides
    int64_t expected = 1;
    for (int d = ndim - 1; d >= 0; --d) {
      if (sizes[d] != 1 && strides[d] != expected) return false;
      expected *= sizes[d];
    }
    return true;
  }

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

const char* dtype_name(DType dtype);

inline bool is_float(DType d) { return d == DType::f32 || d == DType::bf16 || d == DType::f16; }

// Bytes of an element of a floating dtype.
inline int64_t element_size(DType d) { return d == DType::f64 ? 8 : d == DType::f32 ? 4 : 2; }

}  // namespace bigmodel
