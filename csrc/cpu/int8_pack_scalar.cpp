#include <cstring>

#include "int8_panel.h"

namespace bigmodel {

void int8_pack_scalar(const int8_t* weight, int64_t stride, int64_t rows, int64_t groups, int8_t* b) {
  constexpr int64_t kLine = 16;  // groups to a cache line of the source
  for (int64_t g0 = 0; g0 < groups; g0 += kLine) {
    const int64_t g1 = g0 + kLine < groups ? g0 + kLine : groups;
    for (int64_t n = 0; n < rows; ++n)
      for (int64_t g = g0; g < g1; ++g) std::memcpy(b + (g * kPanelColumns + n) * 4, weight + n * stride + g * 4, 4);
  }
}

}  // namespace bigmodel
