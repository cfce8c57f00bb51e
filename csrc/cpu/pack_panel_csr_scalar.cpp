#include "pack_panel_csr.h"

namespace bigmodel {
namespace {

template <typename Bits>
int64_t count_bits(const void* weight, Bits tested, const uint8_t* mask, int64_t columns) {
  const Bits* w = static_cast<const Bits*>(weight);
  int32_t found = 0;
  if (mask)
    for (int64_t k = 0; k < columns; ++k) found += mask[k] != 0;
  else
    for (int64_t k = 0; k < columns; ++k) found += (w[k] & tested) != 0;
  return found;
}

// Without a branch: an entry that is not stored is overwritten by the next one.
template <typename Bits>
int64_t fill_bits(const void* weight, Bits tested, const uint8_t* mask, int64_t columns, void* values, uint8_t* col) {
  const Bits* w = static_cast<const Bits*>(weight);
  Bits* to = static_cast<Bits*>(values);
  int64_t found = 0;
  for (int64_t k = 0; k < columns; ++k) {
    to[found] = w[k];
    col[found] = static_cast<uint8_t>(k);
    found += mask ? mask[k] != 0 : (w[k] & tested) != 0;
  }
  return found;
}

// Calls body(the bits that are tested against 0): all, or all but a float's sign.
template <typename Body>
int64_t with_bits(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::f64:
      return body(~uint64_t{0} >> 1);
    case DType::f32:
      return body(~uint32_t{0} >> 1);
    case DType::i32:
      return body(~uint32_t{0});
    default:
      return body(uint16_t{0x7fff});
  }
}

int64_t count(const void* weight, DType dtype, const uint8_t* mask, int64_t columns) {
  return with_bits(dtype, [&](auto tested) { return count_bits(weight, tested, mask, columns); });
}

int64_t fill(const void* weight, DType dtype, const uint8_t* mask, int64_t columns, void* values, uint8_t* col) {
  return with_bits(dtype, [&](auto tested) { return fill_bits(weight, tested, mask, columns, values, col); });
}

}  // namespace

const PackKernels pack_kernels_scalar = {count, fill};

}  // namespace bigmodel
