#include "row_panels.h"

#include <algorithm>

#include "../common/check.h"
#include "../common/scratch.h"
#include "isa.h"
#include "tiles.h"

namespace bigmodel {
namespace {
#if defined(__x86_64__)
constexpr Variants<const RowPanelKernels*> variants = {
    {&row_panel_kernels_scalar, &row_panel_kernels_avx2, &row_panel_kernels_avx512, nullptr}};
#else
constexpr Variants<const RowPanelKernels*> variants = {{&row_panel_kernels_scalar, nullptr, nullptr, nullptr}};
#endif
}  // namespace

const RowPanelKernels& row_panel_kernels() { return *variants.pick(); }

float* packed_rows(int slot, const View& x, int64_t first, int64_t rows, int64_t begin, int64_t end, int64_t size) {
  const int64_t padded = padded_rows(rows), stride = x.sizes[x.ndim - 1];
  auto* panels =
      static_cast<float*>(scratch(slot, static_cast<size_t>(panels_for(end - begin, size) * padded * size) * 4));
  if (panels)
    row_panel_kernels().pack(x.as<char>() + (first * stride + begin) * element_size(x.dtype), x.dtype, stride, rows,
                             end - begin, size, padded, panels);
  return panels;
}

void unpack_rows(const float* y, int64_t first, int64_t rows, int64_t index, int64_t size, const float* bias,
                 const View& out) {
  const int64_t stride = out.sizes[out.ndim - 1], column = index * size;
  row_panel_kernels().unpack(y, rows, std::min(size, stride - column), size, bias ? bias + column : nullptr,
                             out.as<char>() + (first * stride + column) * element_size(out.dtype), out.dtype, stride);
}

void check_weight_dtype(const View& values, const View& activations, const char* activations_name) {
  check_float(activations, activations_name);
  if (values.dtype == DType::f32 || values.dtype == activations.dtype) return;
  const bool single = activations.dtype == DType::f32;
  throw TypeError(message("values must be float32", single ? "" : " or ", single ? "" : dtype_name(activations.dtype),
                          ", got ", dtype_name(values.dtype)));
}

}  // namespace bigmodel
