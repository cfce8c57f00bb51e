// The view of a tensor that is about to be written in full: large ones are announced, so that the system may hand out
// huge pages (common/pages.h). Of what an op allocates afresh at each call, page faults may cost more than the op.
#pragma once

#include "../common/pages.h"
#include "tensor.h"

namespace bigmodel {

inline size_t item_bytes(DType dtype) {
  if (dtype == DType::i8 || dtype == DType::u8) return 1;
  if (dtype == DType::f16 || dtype == DType::bf16 || dtype == DType::i16) return 2;
  return dtype == DType::f64 || dtype == DType::i64 ? 8 : 4;
}

inline View output(pybind11::handle tensor, const char* name) {
  const View v = view(tensor, name);
  about_to_write(v.data, static_cast<size_t>(v.numel()) * item_bytes(v.dtype));
  return v;
}

}  // namespace bigmodel
