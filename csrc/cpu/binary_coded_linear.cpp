#include "binary_coded_linear.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <vector>

#include "../common/check.h"
#include "../common/parallel.h"
#include "../common/scratch.h"
#include "binary_coded_panel.h"
#include "int8_gemm.h"
#include "isa.h"
#include "panel_csr.h"
#include "quantize_rows.h"

namespace bigmodel {
namespace {

#if defined(__x86_64__)
constexpr Variants<const BinaryCodedKernels*> variants = {
    {&binary_coded_kernels_scalar, &binary_coded_kernels_avx2, &binary_coded_kernels_avx512}};
#else
constexpr Variants<const BinaryCodedKernels*> variants = {{&binary_coded_kernels_scalar}};
#endif
const KernelLevel level_of_binary_coded_linear("binary_coded_linear", [] { return variants.level(); });

constexpr int64_t kTablesBytes = 512 << 10;  // of a block of rows: they stay in L2 while all panels pass
constexpr int64_t kMostRows = 64;            // of a block
constexpr int64_t kPieceBytes = 24 << 10;    // of a panel: its weights stay in L1 while the block's rows pass
constexpr int64_t kWideBytes = 24 << 10;     // of one row's wide tables: more would not stay in L1
constexpr int64_t kGrainWork = 1 << 20;      // signs times rows below which a second thread does not pay

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Job {
  const BinaryCodedKernels& kernels;
  const View &x, &packed, &scales, &out;
  int64_t m, n, k, bits, group_size;
  const float* bias;
  ActivateRows activate;
  bool wide;

  int64_t group_words() const { return ceil_div(group_size, 16); }
  int64_t groups() const { return ceil_div(k, group_size); }
  int64_t words() const { return k / group_size * group_words() + ceil_div(k % group_size, 16); }
  int64_t word_bytes() const { return wide ? kBinaryWideBytes : kBinaryTableBytes; }
  int64_t table_stride() const { return words() * word_bytes() + 64; }  // rows would share a few cache sets
  int64_t block_rows() const {
    const int64_t most = std::max<int64_t>(1, std::min(kMostRows, kTablesBytes / table_stride()));
    return ceil_div(m, std::max<int64_t>(1, ceil_div(m, most)));
  }
  int64_t panels() const { return ceil_div(n, kBinaryColumns); }
};

// A thread's working memory for a block of rows.
struct Memory {
  char* tables = nullptr;       // [rows, table_stride]
  int8_t* quantized = nullptr;  // one row [ceil(K/64) * 64], and the same with room after each group [words * 16]
  int8_t* spread = nullptr;
  float* z = nullptr;      // [rows, 64]
  float* scale = nullptr;  // [rows]

  bool allocate(const Job& job, int64_t rows) noexcept {
    const int64_t tables_bytes = rows * job.table_stride(), z_bytes = rows * kBinaryColumns * 4;
    const int64_t q_bytes = ceil_div(job.k, 64) * 64, spread_bytes = job.words() * 16;
    auto* memory = static_cast<char*>(
        scratch(0, static_cast<size_t>(tables_bytes + z_bytes + kMostRows * 4 + q_bytes + spread_bytes)));
    if (!memory) return false;
    tables = memory;
    z = reinterpret_cast<float*>(memory + tables_bytes);
    scale = reinterpret_cast<float*>(memory + tables_bytes + z_bytes);
    quantized = reinterpret_cast<int8_t*>(memory + tables_bytes + z_bytes + kMostRows * 4);
    spread = quantized + q_bytes;
    return true;
  }
};

// Quantizes `rows` rows from `row0` on and tabulates them.
void prepare(const Job& job, const Memory& memory, int64_t row0, int64_t rows) {
  const int64_t whole = ceil_div(job.k, 64) * 64, width = job.group_words() * 16;
  for (int64_t r = 0; r < rows; ++r) {
    const char* x = job.x.as<char>() + (row0 + r) * job.k * element_size(job.x.dtype);
    quantize_rows_kernel()(x, job.x.dtype, 1, job.k, job.k, reinterpret_cast<uint8_t*>(memory.quantized), whole, 0,
                           memory.scale + r);
    const int8_t* q = memory.quantized;
    if (width != job.group_size) {  // room for half a word after each group
      std::memset(memory.spread, 0, static_cast<size_t>(job.words() * 16));
      for (int64_t g = 0; g < job.groups(); ++g)
        std::memcpy(memory.spread + g * width, q + g * job.group_size,
                    static_cast<size_t>(std::min(job.group_size, job.k - g * job.group_size)));
      q = memory.spread;
    }
    const auto make = job.wide ? job.kernels.make_wide_tables : job.kernels.make_tables;
    make(q, job.words(), memory.tables + r * job.table_stride());
  }
}

void multiply(const Job& job, const Memory& memory, int64_t rows, int64_t panel) {
  BinaryCodedPanel p = {};
  p.table_stride = job.table_stride();
  p.wide = job.wide;
  p.rows = rows;
  p.bits = job.bits;
  p.group_words = job.group_words();
  p.z = memory.z;
  const int64_t word_signs = job.bits * kBinaryColumns * 2;  // bytes
  const uint8_t* packed = job.packed.as<uint8_t>() + panel * job.words() * word_signs;
  const uint16_t* scales = job.scales.as<uint16_t>() + panel * job.groups() * job.bits * kBinaryColumns;
  std::memset(memory.z, 0, static_cast<size_t>(rows * kBinaryColumns) * 4);
  const int64_t fitting = kPieceBytes / (p.group_words * word_signs);
  const int64_t step = rows == 1 ? job.groups() : std::max<int64_t>(1, fitting);
  for (int64_t g = 0; g < job.groups(); g += step) {
    const int64_t word = g * p.group_words;
    p.groups = std::min(step, job.groups() - g);
    p.last_words = std::min(p.group_words, job.words() - word - (p.groups - 1) * p.group_words);
    p.tables = memory.tables + word * job.word_bytes();
    p.packed = packed + word * word_signs;
    p.scales = scales + g * job.bits * kBinaryColumns;
    job.kernels.multiply(p);
  }
}

void finish(const Job& job, const Memory& memory, int64_t row0, int64_t rows, int64_t panel) {
  const int64_t n0 = panel * kBinaryColumns;
  float bias[kBinaryColumns] = {};
  BinaryCodedRows p = {};
  p.z = memory.z;
  p.rows = rows;
  p.x_scale = memory.scale;
  p.columns = std::min(kBinaryColumns, job.n - n0);
  if (job.bias) {
    std::copy(job.bias + n0, job.bias + n0 + p.columns, bias);
    p.bias = bias;
  }
  p.activate = job.activate;
  p.out = job.out.as<char>() + (row0 * job.n + n0) * element_size(job.out.dtype);
  p.out_dtype = job.out.dtype;
  p.out_stride = job.n;
  job.kernels.finish(p);
}

// An item is a block of rows by a panel; a thread's items are consecutive, and it tabulates the rows that it needs
// itself, so threads never wait for each other.
void run(const Job& job) {
  if (job.m == 0 || job.n == 0) return;
  const int64_t block = job.block_rows(), panels = job.panels();
  const int64_t work = kBinaryColumns * (job.k + 16) * job.bits * block;
  std::atomic<bool> out_of_memory{false};  // nothing may be thrown through the thread pool
  parallel_for(ceil_div(job.m, block) * panels, ceil_div(kGrainWork, work), [&](int64_t begin, int64_t end) {
    Memory memory;
    if (!memory.allocate(job, block)) {
      out_of_memory = true;
      return;
    }
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row0 = i / panels * block, rows = std::min(block, job.m - row0), panel = i % panels;
      if (i == begin || panel == 0) prepare(job, memory, row0, rows);
      multiply(job, memory, rows, panel);
      finish(job, memory, row0, rows, panel);
    }
  });
  if (out_of_memory) throw std::bad_alloc();
}

void check_codes(const View& packed, const View& scales, int64_t n, int64_t k, int64_t group_size) {
  check_dtype(packed, "packed", DType::u8);
  check_ndim(packed, "packed", 5);
  check_dtype(scales, "scales", DType::f16);
  const int64_t bits = packed.sizes[2], panels = ceil_div(n, kBinaryColumns);
  BIGMODEL_CHECK(bits >= 1 && bits <= kBinaryMostBits, "bits must be in [1, ", kBinaryMostBits, "], got ", bits);
  BIGMODEL_CHECK(group_size >= 8 && group_size % 8 == 0, "group_size must be a positive multiple of 8, got ",
                 group_size);
  const int64_t words = k / group_size * ((group_size + 8) / 16) + ceil_div(k % group_size, 16);
  check_shape(packed, "packed", {panels, words, bits, kBinaryColumns, 2});
  check_contiguous(packed, "packed");
  check_shape(scales, "scales", {panels, ceil_div(k, group_size), bits, kBinaryColumns});
  check_contiguous(scales, "scales");
}

}  // namespace

void binary_coded_linear(const View& x, const View& packed, const View& scales, const std::optional<View>& bias,
                         const View& out, int64_t group_size, const char* activation) {
  check_float(x, "x");
  const int64_t m = check_features(x, "x"), k = x.sizes[x.ndim - 1];
  check_out(x, out);
  const int64_t n = out.sizes[out.ndim - 1];
  // A group of more than K inputs is one of K; huge ones would overflow below.
  if (group_size % 8 == 0) group_size = std::min(group_size, std::max<int64_t>(1, ceil_div(k, 16)) * 16);
  check_codes(packed, scales, n, k, group_size);
  check_bias(bias ? &*bias : nullptr, n);
  BIGMODEL_CHECK(k <= kInt8MaxK, "K must be at most ", kInt8MaxK, " for an exact sum, got ", k);
  std::vector<float> converted(bias && bias->dtype != DType::f32 ? static_cast<size_t>(n) : 0);
  const BinaryCodedKernels& kernels = *variants.pick();
  const bool wide = kernels.make_wide_tables && (m > 1 || k * kBinaryWideBytes / 16 <= kWideBytes);
  run({kernels, x, packed, scales, out, m, n, k, packed.sizes[2], group_size,
       bias_as_float(bias ? &*bias : nullptr, converted.data()), activate_rows(activation), wide});
}

}  // namespace bigmodel
