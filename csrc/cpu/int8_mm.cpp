#include "int8_mm.h"

#include "int8_gemm.h"

namespace bigmodel {

void int8_mm(const View& a, const View& b, const View& out) {
  check_int8_mm(a, b, out);
  Int8Gemm gemm = {};
  gemm.m = a.sizes[0];
  gemm.n = b.sizes[0];
  gemm.k = a.sizes[1];
  gemm.x = a.data;
  gemm.x_dtype = DType::i8;
  gemm.weight = b.as<int8_t>();
  gemm.out = out.data;
  gemm.out_dtype = DType::i32;
  int8_gemm(gemm);
}

}  // namespace bigmodel
