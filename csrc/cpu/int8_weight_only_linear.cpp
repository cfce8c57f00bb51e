#include "int8_weight_only_linear.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>

#include "../common/check.h"
#include "../common/half.h"
#include "../common/parallel.h"
#include "../common/scratch.h"
#include "activate_rows.h"
#include "int8_gemm.h"
#include "isa.h"

namespace bigmodel {
namespace {

#if defined(__x86_64__)
constexpr Variants<FloatByInt8Kernel> variants = {
    {float_by_int8_scalar, float_by_int8_avx2, float_by_int8_avx512, nullptr}};
#else
constexpr Variants<FloatByInt8Kernel> variants = {{float_by_int8_scalar, nullptr, nullptr, nullptr}};
#endif
const KernelLevel level_of_int8_weight_only_linear("int8_weight_only_linear", [] { return variants.level(); });

constexpr int64_t kColumns = 64;
constexpr int64_t kBlockBytes = 256 << 10;  // of activations: they and a panel of weights share L2
constexpr int64_t kLeastRows = 48;          // of a block however long: each block reads all weights once
constexpr int64_t kGrainWork = 1 << 18;     // multiply-adds below which a second thread does not pay

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Job {
  int64_t m, n, k, groups, panels, block, stride;  // stride: of the rows as the kernel reads them
  bool direct;                                     // it reads x itself
  View x, out;
  const int8_t* weight;
  const float* scale;
  const std::optional<View>& bias;
  ActivateRows activate;
};

float load_float(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::f32:
      return static_cast<const float*>(data)[i];
    case DType::bf16:
      return bf16_to_float(static_cast<const uint16_t*>(data)[i]);
    case DType::f16:
      return f16_to_float(static_cast<const uint16_t*>(data)[i]);
    default:
      return static_cast<float>(static_cast<const double*>(data)[i]);
  }
}

// Rows of x as float32, padded with zeros to a multiple of 4 columns.
void widen(const Job& job, int64_t row0, int64_t rows, float* to) {
  for (int64_t m = 0; m < rows; ++m, to += job.stride) {
    for (int64_t i = 0; i < job.k; ++i) to[i] = load_float(job.x.data, job.x.dtype, (row0 + m) * job.k + i);
    std::fill(to + job.k, to + job.stride, 0.0f);
  }
}

void store(const Job& job, const float* y, int64_t row0, int64_t rows, int64_t n0, int64_t columns) {
  for (int64_t m = 0; m < rows; ++m, y += kColumns) {
    const int64_t at = (row0 + m) * job.n + n0;
    if (job.out.dtype == DType::f32) {
      std::copy(y, y + columns, job.out.as<float>() + at);
    } else {
      uint16_t* to = job.out.as<uint16_t>() + at;
      const bool bf16 = job.out.dtype == DType::bf16;
      for (int64_t n = 0; n < columns; ++n) to[n] = bf16 ? float_to_bf16(y[n]) : float_to_f16(y[n]);
    }
  }
}

// Rows [row0, row0 + rows) by one panel; x is where the kernel reads them, y has room for rows x 64.
void run_panel(const Job& job, FloatByInt8Kernel kernel, const float* x, int64_t row0, int64_t rows, int64_t panel,
               float* y) {
  const int64_t n0 = panel * kColumns, columns = std::min(kColumns, job.n - n0);
  float scale[kColumns] = {}, bias[kColumns] = {};
  FloatByInt8 p = {};
  p.x = x;
  p.x_stride = job.stride;
  p.rows = rows;
  p.groups = job.groups;
  p.weight = job.weight + panel * packed_panel_bytes(job.k) + 256;
  std::copy(job.scale + n0, job.scale + n0 + columns, scale);
  p.scale = scale;
  if (job.bias) {
    for (int64_t n = 0; n < columns; ++n) bias[n] = load_float(job.bias->data, job.bias->dtype, n0 + n);
    p.bias = bias;
  }
  const bool in_place = columns == kColumns && job.out.dtype == DType::f32;
  p.y = in_place ? job.out.as<float>() + row0 * job.n + n0 : y;
  p.y_stride = in_place ? job.n : kColumns;
  kernel(p);
  if (job.activate) job.activate(p.y, rows, kColumns, p.y_stride, nullptr);
  if (!in_place) store(job, y, row0, rows, n0, columns);
}

// Items [begin, end), all panels of a block of rows before the next block. False if there is no memory.
bool run(const Job& job, int64_t begin, int64_t end) {
  const FloatByInt8Kernel kernel = variants.pick();
  const int64_t x_floats = job.direct ? 0 : job.block * job.stride;
  float* memory = static_cast<float*>(scratch(0, static_cast<size_t>(x_floats + job.block * kColumns) * 4));
  if (!memory) return false;
  for (int64_t item = begin, before = -1; item < end; ++item) {
    const int64_t i = item / job.panels, row0 = i * job.block, rows = std::min(job.block, job.m - row0);
    if (!job.direct && i != before) widen(job, row0, rows, memory);
    before = i;
    const float* x = job.direct ? job.x.as<float>() + row0 * job.k : memory;
    run_panel(job, kernel, x, row0, rows, item % job.panels, memory + x_floats);
  }
  return true;
}

void check(const View& x, const View& weight, const View& weight_scale, const std::optional<View>& bias,
           const View& out) {
  check_float(x, "x");
  BIGMODEL_CHECK(x.ndim >= 1, "x must have at least 1 dimension, got shape ", shape_string(x));
  check_contiguous(x, "x");
  check_dtype(weight_scale, "weight_scale", DType::f32);
  BIGMODEL_CHECK(weight_scale.ndim == 1, "weight_scale must be [N], got shape ", shape_string(weight_scale));
  check_contiguous(weight_scale, "weight_scale");
  const int64_t n = weight_scale.sizes[0], k = x.sizes[x.ndim - 1];
  check_dtype(weight, "weight", DType::i8);
  check_shape(weight, "packed weight", {(n + 63) / 64, (k + 3) / 4 + 1, 64, 4});
  check_contiguous(weight, "weight");
  if (bias) {
    if (!is_float(bias->dtype) && bias->dtype != DType::f64)
      throw TypeError(message("bias must be float32, bfloat16, float16 or float64, got ", dtype_name(bias->dtype)));
    check_shape(*bias, "bias", {n});
    check_contiguous(*bias, "bias");
  }
  check_dtype(out, "out", x.dtype);
  bool same = out.ndim == x.ndim && out.sizes[x.ndim - 1] == n;
  for (int d = 0; d + 1 < x.ndim; ++d) same = same && out.sizes[d] == x.sizes[d];
  BIGMODEL_CHECK(same, "out must have x's shape ", shape_string(x), " with ", n, " last, got ", shape_string(out));
  check_contiguous(out, "out");
}

}  // namespace

void int8_weight_only_linear(const View& x, const View& weight, const View& weight_scale,
                             const std::optional<View>& bias, const View& out, const char* activation) {
  check(x, weight, weight_scale, bias, out);
  const int64_t n = weight_scale.sizes[0], k = x.sizes[x.ndim - 1];
  int64_t m = 1;
  for (int d = 0; d + 1 < x.ndim; ++d) m *= x.sizes[d];
  Job job = {m,
             n,
             k,
             ceil_div(k, 4),
             ceil_div(n, kColumns),
             0,
             0,
             x.dtype == DType::f32 && k % 4 == 0,
             x,
             out,
             weight.as<int8_t>(),
             weight_scale.as<float>(),
             bias,
             activate_rows(activation)};
  if (m == 0 || n == 0) return;
  job.stride = job.groups * 4;
  const int64_t most = std::max(kLeastRows, kBlockBytes / std::max<int64_t>(4, job.stride * 4));
  job.block = ceil_div(m, ceil_div(m, most));
  const int64_t item_work = kColumns * (k + 16) * (job.block + 4);
  std::atomic<bool> out_of_memory{false};  // nothing may be thrown through the thread pool
  parallel_for(ceil_div(m, job.block) * job.panels, ceil_div(kGrainWork, item_work), [&](int64_t begin, int64_t end) {
    if (!run(job, begin, end)) out_of_memory = true;
  });
  if (out_of_memory) throw std::bad_alloc();
}

}  // namespace bigmodel
