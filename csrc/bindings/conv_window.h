// A convolution's window out of Python's tuple of eleven integers: kernel, stride, padding (top, bottom, left, right),
// dilation, groups.
#pragma once

#include <pybind11/pybind11.h>

#include "../common/check.h"
#include "../cpu/conv2d.h"

namespace bigmodel {

inline ConvWindow conv_window(const pybind11::tuple& numbers) {
  BIGMODEL_CHECK(numbers.size() == 11, "a convolution's window has 11 numbers, got ", numbers.size());
  int64_t v[11];
  for (size_t i = 0; i < 11; ++i) v[i] = numbers[i].cast<int64_t>();
  return {{v[0], v[1]}, {v[2], v[3]}, {v[4], v[5], v[6], v[7]}, {v[8], v[9]}, v[10]};
}

}  // namespace bigmodel
