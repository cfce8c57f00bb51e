#include "tensor_map.h"

#include <stdexcept>
#include <string>

#include "guard.h"

namespace bigmodel {

namespace {

int bytes_of(TensorElement element) {
  switch (element) {
    case TensorElement::s8:
      return 1;
    case TensorElement::bf16:
    case TensorElement::f16:
      return 2;
    case TensorElement::f32:
    case TensorElement::s32:
      return 4;
  }
  return 0;
}

int bytes_of(TensorSwizzle swizzle) { return 16 << static_cast<int>(swizzle); }

[[noreturn]] void refuse(const std::string& why) { throw std::runtime_error("make_tensor_map: " + why); }

// What the driver would refuse without saying why.
void check(TensorElement element, const void* address, std::initializer_list<int64_t> sizes,
           std::initializer_list<int64_t> strides, std::initializer_list<int> box, TensorSwizzle swizzle) {
  const size_t rank = sizes.size();
  if (rank < 2 || rank > 3 || strides.size() != rank - 1 || box.size() != rank)
    refuse("two or three dimensions, strides of all but the innermost, and a box of as many");
  if (reinterpret_cast<uintptr_t>(address) % 16) refuse("the address must be a multiple of 16");
  for (int64_t s : sizes)
    if (s < 1 || s > int64_t{1} << 32) refuse("size " + std::to_string(s));
  for (int64_t s : strides)
    if (s < 1 || s % 16 || s >= int64_t{1} << 40) refuse("stride " + std::to_string(s));
  for (int b : box)
    if (b < 1 || b > 256) refuse("box " + std::to_string(b));
  const int inner = *box.begin() * bytes_of(element);
  if (inner % 16) refuse("the box's innermost " + std::to_string(inner) + " bytes are not a multiple of 16");
  if (swizzle != TensorSwizzle::none && inner != bytes_of(swizzle))
    refuse("the box's innermost " + std::to_string(inner) + " bytes are not the swizzle's " +
           std::to_string(bytes_of(swizzle)));
}

#if defined(BIGMODEL_EMULATED)

TensorMap encode(TensorElement element, const void* address, std::initializer_list<int64_t> sizes,
                 std::initializer_list<int64_t> strides, std::initializer_list<int> box, TensorSwizzle swizzle) {
  TensorMap map;
  map.address = const_cast<char*>(static_cast<const char*>(address));
  map.rank = static_cast<int>(sizes.size());
  map.element_bytes = bytes_of(element);
  map.swizzle_bytes = swizzle == TensorSwizzle::none ? 0 : bytes_of(swizzle);
  for (int d = 0; d < map.rank; ++d) {
    map.sizes[d] = sizes.begin()[d];
    map.box[d] = box.begin()[d];
    map.strides[d] = d ? strides.begin()[d - 1] : map.element_bytes;
  }
  return map;
}

#else

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's function, found at run time: the library must load where there is no driver.
Encode driver_function() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
#else
  const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
  check_cuda(error, "make_tensor_map");
  if (found != cudaDriverEntryPointSuccess || !function) refuse("the driver has no cuTensorMapEncodeTiled");
  return reinterpret_cast<Encode>(function);
}

CUtensorMapDataType data_type(TensorElement element) {
  switch (element) {
    case TensorElement::s8:
      return CU_TENSOR_MAP_DATA_TYPE_UINT8;  // its bytes are moved as they are
    case TensorElement::bf16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case TensorElement::f16:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    case TensorElement::f32:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    case TensorElement::s32:
      break;
  }
  return CU_TENSOR_MAP_DATA_TYPE_INT32;
}

TensorMap encode(TensorElement element, const void* address, std::initializer_list<int64_t> sizes,
                 std::initializer_list<int64_t> strides, std::initializer_list<int> box, TensorSwizzle swizzle) {
  static const Encode function = driver_function();
  constexpr CUtensorMapSwizzle kSwizzles[] = {CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_32B,
                                              CU_TENSOR_MAP_SWIZZLE_64B, CU_TENSOR_MAP_SWIZZLE_128B};
  const cuuint32_t rank = static_cast<cuuint32_t>(sizes.size());
  cuuint64_t size[3], stride[2];
  cuuint32_t extent[3], step[3] = {1, 1, 1};
  for (cuuint32_t d = 0; d < rank; ++d) {
    size[d] = static_cast<cuuint64_t>(sizes.begin()[d]);
    extent[d] = static_cast<cuuint32_t>(box.begin()[d]);
    if (d) stride[d - 1] = static_cast<cuuint64_t>(strides.begin()[d - 1]);
  }
  TensorMap map;
  const CUresult result = function(&map, data_type(element), rank, const_cast<void*>(address), size, stride, extent,
                                   step, CU_TENSOR_MAP_INTERLEAVE_NONE, kSwizzles[static_cast<int>(swizzle)],
                                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) refuse("the driver refuses: CUresult " + std::to_string(static_cast<int>(result)));
  return map;
}

#endif

}  // namespace

TensorMap make_tensor_map(TensorElement element, const void* address, std::initializer_list<int64_t> sizes,
                          std::initializer_list<int64_t> strides, std::initializer_list<int> box,
                          TensorSwizzle swizzle) {
  check(element, address, sizes, strides, box, swizzle);
  return encode(element, address, sizes, strides, box, swizzle);
}

}  // namespace bigmodel
