// What the value gradients of the block and the 2:4 layers share. For portable files.
#pragma once

#include <algorithm>
#include <atomic>
#include <new>
#include <vector>

#include "../common/parallel.h"
#include "../common/view.h"
#include "panel_csr.h"
#include "tiles.h"

namespace bigmodel {

// grad [..., N], x [..., K] with the same leading sizes, and out: all of one float dtype. Returns the product of those
// sizes, M.
int64_t check_gradient(const View& grad, const View& x, const View& out);

// Calls body(first, last, parts, values) on every thread, for parts [first, last) of `parts` of out's values. These are
// float32 (out's own memory, or rounded to its dtype afterwards), and 0 already where M is 0. The body returns false if
// it found no memory; then std::bad_alloc is thrown.
template <typename Body>
void fill_grad_values(const View& out, int64_t m, int64_t work, Body&& body) {
  const int64_t total = out.numel();
  const bool in_place = out.dtype == DType::f32;
  std::vector<float> wide(in_place ? 0 : total);
  float* values = in_place ? out.as<float>() : wide.data();
  if (m == 0) std::fill(values, values + total, 0.0f);
  const int64_t parts = work < kSerialWork ? 1 : num_threads();
  std::atomic<bool> ok{true};
  parallel_for(parts, 1, [&](int64_t first, int64_t last) {
    if (!body(first, last, parts, values)) ok = false;
  });
  if (!ok) throw std::bad_alloc();
  if (!in_place) tile_kernels().unpack(values, 1, total, 1, nullptr, out.data, out.dtype, total);
}

}  // namespace bigmodel
