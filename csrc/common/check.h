// Checks whose messages name the argument, its value and what is allowed.
#pragma once

#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

#include "view.h"

namespace bigmodel {

// Becomes Python's TypeError; std::invalid_argument becomes ValueError.
struct TypeError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <typename... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

std::string shape_string(const View& v);

void check_dtype(const View& v, const char* name, DType expected);
void check_float(const View& v, const char* name);  // float32, bfloat16 or float16
void check_ndim(const View& v, const char* name, int expected);
void check_contiguous(const View& v, const char* name);
void check_shape(const View& v, const char* name, std::initializer_list<int64_t> expected);
void check_size(const View& v, const char* name, int dim, int64_t expected);

}  // namespace bigmodel

// The condition's failure throws ValueError with the given parts streamed together.
#define BIGMODEL_CHECK(condition, ...)                                                                    \
  do {                                                                                                    \
    if (__builtin_expect(!(condition), 0)) throw std::invalid_argument(::bigmodel::message(__VA_ARGS__)); \
  } while (0)
