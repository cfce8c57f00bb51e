#include "int8_gemm.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>

#include "../common/half.h"
#include "../common/parallel.h"
#include "../common/scratch.h"
#include "int8_panel.h"
#include "isa.h"
#include "quantize_rows.h"

namespace bigmodel {
namespace {

#if defined(__x86_64__)
constexpr Variants<Int8PanelKernel> variants = {
    {int8_panel_scalar, int8_panel_avx2, int8_panel_avx512, int8_panel_avx512vnni}};
constexpr Variants<Int8PackKernel> pack_variants = {{int8_pack_scalar, int8_pack_avx2, nullptr, nullptr}};
#else
constexpr Variants<Int8PanelKernel> variants = {{int8_panel_scalar, nullptr, nullptr, nullptr}};
constexpr Variants<Int8PackKernel> pack_variants = {{int8_pack_scalar, nullptr, nullptr, nullptr}};
#endif
const KernelLevel level_of_int8_mm("int8_mm", [] { return variants.level(); });
const KernelLevel level_of_int8_linear("int8_linear", [] { return variants.level(); });

constexpr int64_t kRowTile = 6;                  // rows of every wide kernel's register tile
constexpr int64_t kActivationBytes = 192 << 10;  // of a block: it, the next one and two panels stay in L2
constexpr int64_t kGrainWork = 1 << 20;          // multiply-adds below which a second thread does not pay
constexpr int64_t kReadingWork = 8;              // reading a weight costs about as much as this many multiply-adds
constexpr int64_t kLeastRows = 24;               // of a block: with fewer, threads share its panels instead
constexpr int64_t kFewestRows = 48;              // of a block however long: each block reads all weights once,
constexpr int64_t kFewestRowsFar = 128;          // from memory if they are
constexpr int64_t kFarBytes = 8 << 20;           // more than a core's share of the last-level cache
constexpr int64_t kSoonBytes = 128 << 10;        // of the next activations, the most that is fetched into L2 in advance

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// How the work is cut: an item is `block` rows by one panel. A thread's items are consecutive, all panels of a block
// before the next block, and it makes the rows that it needs unsigned itself, so threads never wait for each other.
struct Plan {
  int64_t panels;
  int64_t stride;  // bytes between unsigned activation rows
  int64_t block;
};

Plan make_plan(const Int8Gemm& g) {
  Plan plan;
  plan.panels = ceil_div(g.n, kPanelColumns);
  plan.stride = round_up(std::max<int64_t>(g.k, 1), 64);
  if (plan.stride % 2048 == 0) plan.stride += 64;  // rows a power of two apart would share a few cache sets
  const int64_t fewest = g.n * plan.stride > kFarBytes ? kFewestRowsFar : kFewestRows;
  const int64_t most = std::max(kActivationBytes / plan.stride, fewest);
  const int64_t least = ceil_div(g.m, most);
  const int64_t even = std::min(round_up(least, num_threads()), g.m / kLeastRows);  // as many for each thread
  plan.block = ceil_div(g.m, std::max(least, even));
  return plan;
}

void offset_rows(const int8_t* x, int64_t rows, int64_t k, uint8_t* q, int64_t stride) {
  for (int64_t m = 0; m < rows; ++m, x += k, q += stride) {
    for (int64_t i = 0; i < k; ++i) q[i] = static_cast<uint8_t>(x[i]) ^ 0x80u;
    std::memset(q + k, 128, static_cast<size_t>(stride - k));
  }
}

int64_t row_bytes(const Int8Gemm& g) { return g.k * (g.x_dtype == DType::i8 ? 1 : g.x_dtype == DType::f32 ? 4 : 2); }

// A block of x's rows and, once made unsigned, where they are.
struct Block {
  int64_t row0, rows;
  uint8_t* q;  // [rows, stride]
  float* scale;
};

void make_unsigned(const Int8Gemm& g, const Plan& plan, const Block& block, int64_t begin, int64_t end) {
  if (begin == end) return;
  const char* from = static_cast<const char*>(g.x) + (block.row0 + begin) * row_bytes(g);
  uint8_t* to = block.q + begin * plan.stride;
  if (g.x_dtype == DType::i8) {
    offset_rows(reinterpret_cast<const int8_t*>(from), end - begin, g.k, to, plan.stride);
  } else if (g.input_scale) {
    quantize_fixed_kernel()(from, g.x_dtype, end - begin, g.k, g.k, to, plan.stride, 128, fixed_scale(*g.input_scale),
                            block.scale + begin);
  } else {
    quantize_rows_kernel()(from, g.x_dtype, end - begin, g.k, g.k, to, plan.stride, 128, block.scale + begin);
  }
}

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

// weight[n0 : n0 + columns, k0 : k0 + 4 * groups] -> [groups, 64, 4], zero where the weight ends.
void pack(const Int8Gemm& g, int64_t n0, int64_t columns, int64_t k0, int64_t groups, int8_t* b) {
  const int64_t whole = std::min(groups, (g.k - k0) / 4);
  if (columns < kPanelColumns || whole < groups) std::memset(b, 0, static_cast<size_t>(groups * 256));
  pack_variants.pick()(g.weight + n0 * g.k + k0, g.k, columns, whole, b);
  if (whole == groups) return;
  const size_t rest = static_cast<size_t>(g.k - k0 - 4 * whole);
  for (int64_t n = 0; n < columns; ++n)
    std::memcpy(b + whole * 256 + n * 4, g.weight + (n0 + n) * g.k + k0 + 4 * whole, rest);
}

// 128 * sum_k b[n,k] as the kernel itself computes it: one row of activations that are all 128.
void sum_columns(Int8PanelKernel kernel, const int8_t* b, int64_t groups, const uint8_t* row_of_128, int32_t* sums) {
  Int8Panel p = {};
  p.a = row_of_128;
  p.rows = 1;
  p.b = b;
  p.groups = groups;
  p.first = p.last = true;
  p.out = sums;
  p.out_dtype = DType::i32;
  p.columns = kPanelColumns;
  p.next = b;
  kernel(p);
}

// One panel's scales and biases as float32 [64]: in place where that is what they are, else copied.
struct Columns {
  float scale[kPanelColumns], bias[kPanelColumns];

  void point(const Int8Gemm& g, int64_t n0, int64_t columns, Int8Panel& p) {
    if (!g.weight_scale) return;
    p.activate = g.activate;
    p.weight_scale = g.weight_scale + n0;
    if (columns < kPanelColumns) {
      std::fill(std::copy(p.weight_scale, p.weight_scale + columns, scale), scale + kPanelColumns, 0.0f);
      p.weight_scale = scale;
    }
    if (!g.bias) return;
    if (g.bias_dtype == DType::f32 && columns == kPanelColumns) {
      p.bias = static_cast<const float*>(g.bias) + n0;
      return;
    }
    for (int64_t n = 0; n < kPanelColumns; ++n) bias[n] = n < columns ? load_float(g.bias, g.bias_dtype, n0 + n) : 0.0f;
    p.bias = bias;
  }
};

// Working memory of a thread: a block of activations and the next one, sums over K blocks, and for a canonical weight
// the packed block and a row of 128.
struct Memory {
  char* activations = nullptr;
  int64_t block_bytes = 0, first = 0;
  int8_t* packed = nullptr;
  uint8_t* row_of_128 = nullptr;
  int32_t* partial = nullptr;

  // For a thread that works on `blocks` blocks in turn. False if there is no memory.
  bool allocate(const Int8Gemm& g, const Plan& plan, int64_t first_block, int64_t blocks) noexcept {
    first = first_block;
    const int64_t groups = ceil_div(g.k, 4);
    block_bytes = round_up(plan.block * 4, 64) + plan.block * plan.stride;
    const int64_t partial_bytes = groups > kPanelMaxGroups ? plan.block * kPanelColumns * 4 : 0;
    const int64_t packed_groups = g.packed ? 0 : std::min(groups, kPanelMaxGroups);
    const int64_t all_blocks = std::min<int64_t>(blocks, 2) * block_bytes;
    activations = static_cast<char*>(scratch(0, static_cast<size_t>(all_blocks + partial_bytes + packed_groups * 260)));
    if (!activations) return false;
    partial = reinterpret_cast<int32_t*>(activations + all_blocks);
    packed = reinterpret_cast<int8_t*>(activations + all_blocks + partial_bytes);
    row_of_128 = reinterpret_cast<uint8_t*>(packed + packed_groups * 256);
    std::memset(row_of_128, 128, static_cast<size_t>(packed_groups * 4));
    return true;
  }

  Block block(const Int8Gemm& g, const Plan& plan, int64_t i) const {
    char* memory = activations + (i - first) % 2 * block_bytes;
    const int64_t row0 = i * plan.block;
    return {row0, std::min(plan.block, g.m - row0), reinterpret_cast<uint8_t*>(memory + round_up(plan.block * 4, 64)),
            reinterpret_cast<float*>(memory)};
  }
};

// The rows p.a, which are x's from row0, by panel `panel`; p comes with what concerns the rows filled in.
void run_panel(const Int8Gemm& g, Int8PanelKernel kernel, const Memory& memory, int64_t panel, int64_t row0,
               Int8Panel p) {
  const int64_t groups = ceil_div(g.k, 4), n0 = panel * kPanelColumns;
  p.columns = std::min(kPanelColumns, g.n - n0);
  p.partial = memory.partial;
  p.out =
      static_cast<char*>(g.out) + (row0 * g.n + n0) * (g.out_dtype == DType::f32 || g.out_dtype == DType::i32 ? 4 : 2);
  p.out_dtype = g.out_dtype;
  p.out_stride = g.n;
  Columns columns;
  columns.point(g, n0, p.columns, p);
  const int8_t* weights = g.weight + panel * packed_panel_bytes(g.k);
  int32_t compensation[kPanelColumns];
  if (g.packed) std::memcpy(compensation, weights, sizeof compensation);
  const uint8_t* a = p.a;
  int64_t g0 = 0;
  do {
    p.groups = std::min(kPanelMaxGroups, groups - g0);
    p.a = a + g0 * 4;
    p.first = g0 == 0;
    p.last = g0 + p.groups == groups;
    if (g.packed) {
      p.b = weights + 256 + g0 * 256;
      p.next = p.b + p.groups * 256;
      p.compensation = p.first ? compensation : nullptr;
    } else {
      pack(g, n0, p.columns, g0 * 4, p.groups, memory.packed);
      sum_columns(kernel, memory.packed, p.groups, memory.row_of_128, compensation);
      p.b = p.next = memory.packed;
      p.compensation = compensation;
    }
    kernel(p);
    g0 += p.groups;
  } while (g0 < groups);
}

// Block `i` by the panels [begin, end). Between panels some rows of the next block are made unsigned, if the thread
// goes on to one: that way x comes from memory while the processor multiplies.
void run_block(const Int8Gemm& g, const Plan& plan, const Memory& memory, int64_t i, int64_t begin, int64_t end,
               bool more) {
  const Int8PanelKernel kernel = int8_panel_kernel();
  const Block block = memory.block(g, plan, i), next = more ? memory.block(g, plan, i + 1) : Block{};
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t first = next.rows * (panel - begin) / (end - begin);
    const int64_t last = next.rows * (panel + 1 - begin) / (end - begin);
    Int8Panel p = {};
    p.a = block.q;
    p.a_stride = plan.stride;
    p.rows = block.rows;
    p.x_scale = block.scale;
    p.soon = static_cast<const char*>(g.x) + (next.row0 + first) * row_bytes(g);
    p.soon_bytes = std::min((last - first) * row_bytes(g), kSoonBytes);
    run_panel(g, kernel, memory, panel, block.row0, p);
    make_unsigned(g, plan, next, first, last);
  }
}

}  // namespace

Int8PanelKernel int8_panel_kernel() { return variants.pick(); }

void int8_gemm(const Int8Gemm& g) {
  if (g.m == 0 || g.n == 0) return;
  const Plan plan = make_plan(g);
  const int64_t item_work = kPanelColumns * (g.k + 16) * (plan.block + kReadingWork);
  std::atomic<bool> out_of_memory{false};  // nothing may be thrown through the thread pool
  parallel_for(ceil_div(g.m, plan.block) * plan.panels, ceil_div(kGrainWork, item_work),
               [&](int64_t begin, int64_t end) {
                 Memory memory;
                 const int64_t first = begin / plan.panels, last = (end - 1) / plan.panels;
                 if (!memory.allocate(g, plan, first, last - first + 1)) {
                   out_of_memory = true;
                   return;
                 }
                 const Block block = memory.block(g, plan, first);
                 make_unsigned(g, plan, block, 0, block.rows);
                 for (int64_t i = first; i <= last; ++i) {
                   const int64_t item0 = i * plan.panels;
                   run_block(g, plan, memory, i, std::max(begin - item0, int64_t{0}),
                             std::min(end - item0, plan.panels), i < last);
                 }
               });
  if (out_of_memory) throw std::bad_alloc();
}

}  // namespace bigmodel
