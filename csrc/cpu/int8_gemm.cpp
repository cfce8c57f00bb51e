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
constexpr int64_t kQuantizeGrainElements = 32768;
constexpr int64_t kSoonBytes = 128 << 10;  // of the next activations, the most that is fetched into L2 in advance

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// How the work is cut: `block` rows by one panel is an item, and the items of `rows` rows are done at a time, each of
// them also making some rows of the next batch unsigned: that way x comes from memory while the processor multiplies.
struct Plan {
  int64_t panels;
  int64_t stride;  // bytes between unsigned activation rows
  int64_t block;
  int64_t rows;
};

Plan make_plan(const Int8Gemm& g) {
  Plan plan;
  const int64_t threads = num_threads();
  plan.panels = ceil_div(g.n, kPanelColumns);
  plan.stride = round_up(std::max<int64_t>(g.k, 1), 64);
  if (plan.stride % 2048 == 0) plan.stride += 64;  // rows a power of two apart would share a few cache sets
  plan.block = std::max(kActivationBytes / plan.stride / kRowTile, int64_t{1}) * kRowTile;
  if (threads > 1) {  // enough items for an even share
    const int64_t wanted = ceil_div(4 * threads, plan.panels);
    plan.block = std::min(plan.block, round_up(ceil_div(g.m, wanted), kRowTile));
  }
  plan.rows = std::min(g.m, plan.block * threads);
  return plan;
}

void offset_rows(const int8_t* x, int64_t rows, int64_t k, uint8_t* q, int64_t stride) {
  for (int64_t m = 0; m < rows; ++m, x += k, q += stride) {
    for (int64_t i = 0; i < k; ++i) q[i] = static_cast<uint8_t>(x[i]) ^ 0x80u;
    std::memset(q + k, 128, static_cast<size_t>(stride - k));
  }
}

int64_t row_bytes(const Int8Gemm& g) { return g.k * (g.x_dtype == DType::i8 ? 1 : g.x_dtype == DType::f32 ? 4 : 2); }

// A run of x's rows and, once made unsigned, where they are.
struct Batch {
  int64_t row0, rows;
  uint8_t* q;  // [rows, stride]
  float* scale;
};

void make_unsigned(const Int8Gemm& g, const Plan& plan, const Batch& batch, int64_t begin, int64_t end) {
  if (begin == end) return;
  const char* from = static_cast<const char*>(g.x) + (batch.row0 + begin) * row_bytes(g);
  uint8_t* to = batch.q + begin * plan.stride;
  if (g.x_dtype == DType::i8) {
    offset_rows(reinterpret_cast<const int8_t*>(from), end - begin, g.k, to, plan.stride);
  } else {
    quantize_rows_kernel()(from, g.x_dtype, end - begin, g.k, g.k, to, plan.stride, 128, batch.scale + begin);
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

constexpr int kActivationsSlot = 0, kItemSlot = 1;

// Working memory of a thread's items: sums over K blocks, and for a canonical weight the packed block and a row of 128.
struct ItemMemory {
  int8_t* packed = nullptr;
  uint8_t* row_of_128 = nullptr;
  int32_t* partial = nullptr;

  // False if there is no memory.
  bool allocate(const Int8Gemm& g, int64_t rows) noexcept {
    const int64_t groups = ceil_div(g.k, 4);
    const int64_t partial_bytes = groups > kPanelMaxGroups ? rows * kPanelColumns * 4 : 0;
    const int64_t block = g.packed ? 0 : std::min(groups, kPanelMaxGroups);
    char* memory = static_cast<char*>(scratch(kItemSlot, static_cast<size_t>(partial_bytes + block * (256 + 4))));
    if (!memory) return false;
    partial = reinterpret_cast<int32_t*>(memory);
    packed = reinterpret_cast<int8_t*>(memory + partial_bytes);
    row_of_128 = reinterpret_cast<uint8_t*>(packed + block * 256);
    std::memset(row_of_128, 128, static_cast<size_t>(block * 4));
    return true;
  }
};

// The rows p.a, which are x's from row0, by panel `panel`; p comes with what concerns the rows filled in.
void run_panel(const Int8Gemm& g, Int8PanelKernel kernel, const ItemMemory& memory, int64_t panel, int64_t row0,
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

}  // namespace

Int8PanelKernel int8_panel_kernel() { return variants.pick(); }

void int8_gemm(const Int8Gemm& g) {
  if (g.m == 0 || g.n == 0) return;
  const Plan plan = make_plan(g);
  const Int8PanelKernel kernel = int8_panel_kernel();
  const int64_t scale_bytes = round_up(plan.rows * 4, 64), batch_bytes = scale_bytes + plan.rows * plan.stride;
  const int64_t batches = ceil_div(g.m, plan.rows);
  char* activations =
      static_cast<char*>(scratch(kActivationsSlot, static_cast<size_t>(std::min<int64_t>(batches, 2) * batch_bytes)));
  if (!activations) throw std::bad_alloc();
  const auto batch_at = [&](int64_t i) {
    char* memory = activations + i % 2 * batch_bytes;
    const int64_t rows = std::clamp<int64_t>(g.m - i * plan.rows, 0, plan.rows);
    return Batch{i * plan.rows, rows, reinterpret_cast<uint8_t*>(memory + scale_bytes),
                 reinterpret_cast<float*>(memory)};
  };
  std::atomic<bool> out_of_memory{false};  // nothing may be thrown through the thread pool
  Batch batch = batch_at(0);
  parallel_for(batch.rows, kQuantizeGrainElements / std::max<int64_t>(g.k, 1) + 1,
               [&](int64_t begin, int64_t end) { make_unsigned(g, plan, batch, begin, end); });
  for (int64_t i = 0; i < batches; ++i) {
    const Batch next = batch_at(i + 1);
    const int64_t items = ceil_div(batch.rows, plan.block) * plan.panels;
    const int64_t item_work = kPanelColumns * (g.k + 16) * (std::min(plan.block, batch.rows) + kReadingWork);
    parallel_for(items, ceil_div(kGrainWork, item_work), [&](int64_t begin, int64_t end) {
      ItemMemory memory;
      if (!memory.allocate(g, plan.block)) {
        out_of_memory = true;
        return;
      }
      for (int64_t item = begin; item < end; ++item) {
        const int64_t first = item / plan.panels * plan.block;
        const int64_t next_begin = next.rows * item / items, next_end = next.rows * (item + 1) / items;
        Int8Panel p = {};
        p.a = batch.q + first * plan.stride;
        p.a_stride = plan.stride;
        p.rows = std::min(plan.block, batch.rows - first);
        p.x_scale = batch.scale + first;
        p.soon = static_cast<const char*>(g.x) + (next.row0 + next_begin) * row_bytes(g);
        p.soon_bytes = std::min((next_end - next_begin) * row_bytes(g), kSoonBytes);
        run_panel(g, kernel, memory, item % plan.panels, batch.row0 + first, p);
        make_unsigned(g, plan, next, next_begin, next_end);
      }
    });
    batch = next;
  }
  if (out_of_memory) throw std::bad_alloc();
}

}  // namespace bigmodel
