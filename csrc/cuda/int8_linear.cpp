#include "int8_linear.h"

#include "../common/check.h"
#include "../common/dropout.h"
#include "../common/int8_args.h"
#include "int8_launch.h"

namespace bigmodel {
namespace {

bool multiple_of(int64_t bytes, const void* p, int64_t stride) {
  return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(bytes) == 0 && stride % bytes == 0;
}

int width_of(const Int8Operands& o) {
  for (const int width : {16, 4})
    if (multiple_of(width, o.a, o.a_stride) && multiple_of(width, o.b, o.b_stride)) return width;
  return 1;
}

Int8Operands operands(const void* a, int64_t a_stride, const View& b, const Int8Sizes& s) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 1024;
  BIGMODEL_CHECK(s.m <= kMost && s.n <= kMost, "M and N must be at most ", kMost, ", got ", s.m, " and ", s.n);
  Int8Operands o = {static_cast<const int8_t*>(a), b.as<int8_t>(),        a_stride, s.k, static_cast<int>(s.m),
                    static_cast<int>(s.n),         static_cast<int>(s.k), 1};
  o.width = width_of(o);
  return o;
}

// Four columns of a row start at a multiple of their bytes, in all rows.
bool stores_vectors(const View& out, int64_t n) { return multiple_of(16, out.data, 0) && n % 4 == 0; }

RowsToQuantize rows_to_quantize(const View& x, int64_t rows, const View* fixed) {
  const int64_t k = x.sizes[x.ndim - 1];
  return {x.data,
          x.dtype,
          rows,
          static_cast<int>(k),
          fixed ? fixed->as<float>() : nullptr,
          multiple_of(16, x.data, k * element_size(x.dtype))};
}

Int8Device device_of(int index) {
  return {device_architecture(index), device_attribute(cudaDevAttrMultiProcessorCount, index)};
}

void check_launch(const Int8Launch& launch, const Int8Sizes& s, const Int8Device& device) {
  check_plan(launch.plan, s, device);
  const size_t needed = int8_workspace(launch.plan, s).bytes;
  BIGMODEL_CHECK(launch.workspace_bytes >= needed, "workspace must have ", needed, " bytes, got ",
                 launch.workspace_bytes);
  BIGMODEL_CHECK(multiple_of(16, launch.workspace, 0), "workspace must be aligned to 16 bytes");
}

// The kernel of the plan, with operands that are int8.
void multiply(const Int8Operands& o, const Int8Result& r, const Int8Launch& launch, const Int8Device& device) {
  const auto stream = static_cast<cudaStream_t>(launch.stream);
  const Int8Plan& plan = launch.plan;
  if (plan.kernel < Int8Kernel::tile_64x64)
    return launch_int8_skinny(o, r, plan.kernel == Int8Kernel::skinny_32, stream);
  int32_t* const partial = static_cast<int32_t*>(launch.workspace);
  Int8Result sums = r;
  if (plan.splits > 1) {
    sums = {partial, DType::i32};
    sums.vectors = o.n % 4 == 0;
  }
  const int tile = static_cast<int>(plan.kernel) - static_cast<int>(Int8Kernel::tile_64x64);
  const int wgmma = static_cast<int>(plan.kernel) - static_cast<int>(Int8Kernel::wgmma_64x128);
  if (wgmma < 0)
    launch_int8_tiles(static_cast<Int8Tile>(tile), o, sums, plan.splits, stream);
  else if (o.width < 16)  // TMA can't fetch such rows; the sizes alone did not show it
    launch_int8_tiles(Int8Tile::small, o, sums, plan.splits, stream);
  else
    launch_int8_wgmma(static_cast<Int8Wgmma>(wgmma), o, sums, plan.splits, device.multiprocessors, stream);
  if (plan.splits > 1) launch_int8_sum_splits(partial, plan.splits, o.m, o.n, r, stream);
}

}  // namespace

Int8Plan plan_int8_cuda(const Int8Sizes& sizes, int device) { return plan_int8(sizes, device_of(device)); }

void check_plan_cuda(const Int8Plan& plan, const Int8Sizes& sizes, int device) {
  check_plan(plan, sizes, device_of(device));
}

void int8_linear_cuda(const View& x, const View& weight, const View& weight_scale, const std::optional<View>& bias,
                      const View& out, const char* activation, const std::optional<View>& input_scale,
                      const Int8Launch& launch) {
  check_int8_linear(x, weight, weight_scale, bias, out, input_scale);
  BIGMODEL_CHECK(weight.ndim == 2, "weight must be [N,K] here, not packed, got shape ", shape_string(weight));
  if (bias && bias->dtype == DType::f64) throw TypeError("bias must be float32, bfloat16 or float16 here, got float64");
  const Int8Sizes s = {rows_of(x), weight.sizes[0], weight.sizes[1], true};
  const Int8Device device = device_of(x.device);
  check_launch(launch, s, device);
  Int8Result r = {out.data, out.dtype};
  r.weight_scale = weight_scale.as<float>();
  r.bias = bias ? bias->data : nullptr;
  r.bias_dtype = bias ? bias->dtype : DType::f32;
  r.activation = parse_activation(activation);
  r.vectors = stores_vectors(out, s.n);
  if (s.m == 0 || s.n == 0) return;
  const DeviceGuard guard(x.device);
  const auto stream = static_cast<cudaStream_t>(launch.stream);
  const RowsToQuantize rows = rows_to_quantize(x, s.m, input_scale ? &*input_scale : nullptr);
  if (launch.plan.kernel == Int8Kernel::gemv) {
    return launch_int8_gemv(rows, operands(nullptr, 0, weight, s), r, device.multiprocessors, stream);
  }
  const Int8Workspace w = int8_workspace(launch.plan, s);
  char* const base = static_cast<char*>(launch.workspace);
  const QuantizedRows to = {reinterpret_cast<int8_t*>(base + w.q), w.q_stride,
                            reinterpret_cast<float*>(base + w.scale)};
  launch_quantize_rows(rows, to, stream);
  r.x_scale = to.scale;
  multiply(operands(to.q, to.stride, weight, s), r, launch, device);
}

void int8_mm_cuda(const View& a, const View& b, const View& out, const Int8Launch& launch) {
  check_int8_mm(a, b, out);
  const Int8Sizes s = {a.sizes[0], b.sizes[0], a.sizes[1], false};
  const Int8Device device = device_of(a.device);
  check_launch(launch, s, device);
  if (s.m == 0 || s.n == 0) return;
  Int8Result r = {out.data, DType::i32};
  r.vectors = stores_vectors(out, s.n);
  const DeviceGuard guard(a.device);
  multiply(operands(a.data, s.k, b, s), r, launch, device);
}

void quantize_rows_cuda(const View& x, const View& q, const View& scale, void* stream) {
  check_quantize_rows(x, q, scale);
  const DeviceGuard guard(x.device);
  launch_quantize_rows(rows_to_quantize(x, x.sizes[0], nullptr), {q.as<int8_t>(), x.sizes[1], scale.as<float>()},
                       static_cast<cudaStream_t>(stream));
}

}  // namespace bigmodel
