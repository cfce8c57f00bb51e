#include "../common/check.h"
#include "launch.h"
#include "sparse_bits.h"
#include "sparse_linear.h"

namespace bigmodel {
namespace {

constexpr int kThreads = 128;

struct Pattern {
  const int32_t *crow, *rows;  // rows: of each place of each panel, or null where they lie in order
  const uint8_t* col;
  int64_t segments;
  int n, k, panel;
};

// A thread to a row's entries in a panel. Entries that panel-CSR does not allow set *wrong and are left out.
__global__ void sparse_derive_kernel(Pattern p, uint4* masks, uint2* units, int row_units, int32_t* wrong) {
  const int64_t segment = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (segment >= p.segments) return;
  const int panel = static_cast<int>(segment / p.n), row = p.rows ? p.rows[segment] : static_cast<int>(segment % p.n);
  const int width = p.k - panel * p.panel < p.panel ? p.k - panel * p.panel : p.panel;
  int i = p.crow[segment], last = -1;
  const int end = p.crow[segment + 1];
  for (int first = 0; first < width; first += kUnit) {
    uint32_t word[kUnitWords] = {};
    const int start = i;
    for (; i < end && p.col[i] < first + kUnit; ++i) {
      const int column = p.col[i];
      if (column <= last || column >= width) {
        *wrong = 1;
        return;
      }
      last = column;
#pragma unroll
      for (int w = 0; w < kUnitWords; ++w)
        if ((column - first) / 32 == w) word[w] |= 1u << column % 32;
    }
    if (masks) {
      const int64_t unit = static_cast<int64_t>(row) * row_units + (panel * p.panel + first) / kUnit;
      masks[unit] = make_uint4(word[0], word[1], word[2], word[3]);
      const uint32_t one = __popc(word[0]), two = one + __popc(word[1]), three = two + __popc(word[2]);
      units[unit] = make_uint2(start, one | two << 8 | three << 16 | (three + __popc(word[3])) << 24);
    }
  }
  if (i < end) *wrong = 1;
}

}  // namespace

void sparse_derive_cuda(const View& crow, const View& col, const View* rows, const View* masks, const View* units,
                        const View& wrong, int64_t n, int64_t k, int64_t panel, void* stream) {
  const int64_t panels = (k + panel - 1) / panel, segments = panels * n;
  check_dtype(crow, "crow", DType::i32);
  check_shape(crow, "crow", {segments + 1});
  check_dtype(col, "col", DType::u8);
  check_dtype(wrong, "wrong", DType::i32);
  if (rows) check_shape(*rows, "rows", {segments});
  BIGMODEL_CHECK(!masks || panel % kUnit == 0, "panel must be a multiple of ", kUnit, ", got ", panel);
  const int64_t row_units = (k + kUnit - 1) / kUnit;
  if (masks) {
    check_shape(*masks, "masks", {n, row_units, kUnitWords});
    check_shape(*units, "units", {n, row_units, 2});
  }
  if (segments == 0) return;
  const DeviceGuard guard(crow.device);
  const Pattern pattern{crow.as<int32_t>(),     rows ? rows->as<int32_t>() : nullptr,
                        col.as<uint8_t>(),      segments,
                        static_cast<int>(n),    static_cast<int>(k),
                        static_cast<int>(panel)};
  const dim3 grid(static_cast<unsigned>((segments + kThreads - 1) / kThreads));
  launch("sparse_derive", sparse_derive_kernel, {grid, kThreads, 0, static_cast<cudaStream_t>(stream)}, pattern,
         masks ? masks->as<uint4>() : nullptr, masks ? units->as<uint2>() : nullptr, static_cast<int>(row_units),
         wrong.as<int32_t>());
}

}  // namespace bigmodel
