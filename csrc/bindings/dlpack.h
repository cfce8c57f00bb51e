// The part of the DLPack 1.x C ABI that we use (https://dmlc.github.io/dlpack/latest/c_api.html), declared here so that
// the build needs no framework's headers. torch >= 2.10 publishes the exchange table as
// torch.Tensor.__dlpack_c_exchange_api__; reading a tensor through it takes tens of nanoseconds.
#pragma once

#include <cstdint>

namespace bigmodel::dlpack {

enum DeviceType : int32_t { kCPU = 1, kCUDA = 2 };
enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4 };

struct Device {
  int32_t type;
  int32_t id;
};

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; null means contiguous
  uint64_t byte_offset;
};

struct ExchangeApi {
  uint32_t version_major;
  uint32_t version_minor;
  ExchangeApi* previous;
  void* allocate;                               // not used
  void* export_owned;                           // not used
  void* import_owned;                           // not used
  int (*borrow)(void* py_object, Tensor* out);  // no ownership, no synchronisation; -1 with a Python error set
  int (*current_stream)(int32_t device_type, int32_t device_id, void** out);
};

}  // namespace bigmodel::dlpack
