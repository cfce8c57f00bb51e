// See peaks_avx2.cpp.
#include "peaks.h"
#include "peaks_avx512.h"

#define DOT(r) "vpdpbusd %%zmm30, %%zmm31, %%zmm" r "\n\t"

namespace bigmodel {

int64_t peak_int8_avx512vnni(int64_t iterations) {
  const int64_t operations = iterations * 24 * 64 * 2;
  BIGMODEL_PEAK_LOOP(DOT);
  return operations;
}

}  // namespace bigmodel
