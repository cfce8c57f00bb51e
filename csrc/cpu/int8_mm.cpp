#include "int8_mm.h"

#include "../common/check.h"
#include "int8_gemm.h"

namespace bigmodel {

void int8_mm(const View& a, const View& b, const View& out) {
  check_dtype(a, "a", DType::i8);
  check_ndim(a, "a", 2);
  check_contiguous(a, "a");
  check_dtype(b, "b", DType::i8);
  check_ndim(b, "b", 2);
  check_contiguous(b, "b");
  const int64_t m = a.sizes[0], n = b.sizes[0], k = a.sizes[1];
  BIGMODEL_CHECK(b.sizes[1] == k, "a [M,K] and b [N,K] differ in K: ", shape_string(a), " and ", shape_string(b));
  BIGMODEL_CHECK(k <= kInt8MaxK, "K must be at most ", kInt8MaxK, " for an exact int32 sum, got ", k);
  check_dtype(out, "out", DType::i32);
  check_shape(out, "out", {m, n});
  check_contiguous(out, "out");
  Int8Gemm gemm = {};
  gemm.m = m;
  gemm.n = n;
  gemm.k = k;
  gemm.x = a.data;
  gemm.x_dtype = DType::i8;
  gemm.weight = b.as<int8_t>();
  gemm.out = out.data;
  gemm.out_dtype = DType::i32;
  int8_gemm(gemm);
}

}  // namespace bigmodel
