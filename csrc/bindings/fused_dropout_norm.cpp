#include "../cpu/fused_dropout_norm.h"

#include <optional>

#include "../common/check.h"
#include "tensor.h"
#include "unlocked.h"

namespace py = pybind11;

namespace bigmodel {
namespace {

std::optional<DenseTensor> as_floats(py::handle tensor, const char* name) {
  if (tensor.is_none()) return std::nullopt;
  const DType dtype = view(tensor, name).dtype;
  const bool convert = dtype != DType::f32 && (is_float(dtype) || dtype == DType::f64);
  return dense(convert ? tensor.attr("float")() : py::reinterpret_borrow<py::object>(tensor), name);
}

const View* pointer(const std::optional<DenseTensor>& tensor) { return tensor ? &tensor->view : nullptr; }

std::optional<View> copy_of(const std::optional<DenseTensor>& tensor) {
  return tensor ? std::optional<View>(tensor->view) : std::nullopt;
}

// A float32 vector of `numel`, or null.
float* floats(const View* v, const char* name, int64_t numel) {
  if (!v) return nullptr;
  check_dtype(*v, name, DType::f32);
  check_ndim(*v, name, 1);
  check_size(*v, name, 0, numel);
  check_contiguous(*v, name);
  return v->as<float>();
}

// A tensor of x's shape and dtype, or null.
void* rows_like(const View* v, const char* name, const View& x) {
  if (!v) return nullptr;
  check_dtype(*v, name, x.dtype);
  BIGMODEL_CHECK(shape_string(*v) == shape_string(x), name, " must have shape ", shape_string(x), ", got ",
                 shape_string(*v));
  check_contiguous(*v, name);
  return v->data;
}

NormArgs norm_args(const View& x, const View* weight, const View* norm_bias, double eps, bool rms) {
  BIGMODEL_CHECK(x.ndim >= 1 && x.sizes[x.ndim - 1] >= 1, "x must have at least 1 feature, got shape ",
                 shape_string(x));
  BIGMODEL_CHECK(eps >= 0.0, "eps must not be negative, got ", eps);
  NormArgs args{};
  args.dtype = x.dtype;
  args.features = x.sizes[x.ndim - 1];
  args.rows = x.numel() / args.features;
  args.weight = floats(weight, "weight", args.features);
  args.norm_bias = floats(norm_bias, "norm_bias", args.features);
  args.eps = static_cast<float>(eps);
  args.rms = rms;
  return args;
}

}  // namespace

void register_fused_dropout_norm(py::module_& m) {
  m.def("fused_dropout_norm", [](py::handle x, py::handle bias, py::handle residual, py::handle seed, py::handle weight,
                                 py::handle norm_bias, py::handle y, py::handle h, py::handle mean, py::handle rstd,
                                 double p, const char* activation, bool rms, double eps) {
    const DenseTensor dx = dense(x, "x");
    const auto dbias = as_floats(bias, "bias"), dresidual = optional_dense(residual, "residual");
    const auto dweight = as_floats(weight, "weight"), dnorm_bias = as_floats(norm_bias, "norm_bias");
    const View vy = view(y, "y"), vmean = view(mean, "mean"), vrstd = view(rstd, "rstd");
    const DropoutArgs dropout = dropout_args(dx.view, copy_of(dbias), copy_of(dresidual), "residual",
                                             optional_view(seed, "seed"), view(h, "h"), p, activation);
    NormArgs norm = norm_args(dx.view, pointer(dweight), pointer(dnorm_bias), eps, rms);
    norm.h = dropout.out;
    norm.ahead[0] = dropout.x;
    norm.ahead[1] = dropout.other;
    norm.y = rows_like(&vy, "y", dx.view);
    norm.mean = rms ? nullptr : floats(&vmean, "mean", norm.rows);
    norm.rstd = floats(&vrstd, "rstd", norm.rows);
    unlocked(dropout.numel, [&] { fused_dropout_norm(dropout, norm); });
  });
  m.def("fused_dropout_norm_backward",
        [](py::handle grad_y, py::handle grad_h, py::handle h, py::handle mean, py::handle rstd, py::handle x,
           py::handle bias, py::handle seed, py::handle weight, py::handle dx, py::handle dh, py::handle sums, double p,
           const char* activation, bool rms) {
          const DenseTensor rx = dense(x, "x"), rgrad = dense(grad_y, "grad_y"), rh = dense(h, "h");
          const DenseTensor rmean = dense(mean, "mean"), rrstd = dense(rstd, "rstd");
          const auto rbias = as_floats(bias, "bias"), rweight = as_floats(weight, "weight");
          const auto rgrad_h = optional_dense(grad_h, "grad_h");
          const View vsums = view(sums, "sums");
          const DropoutArgs dropout = dropout_args(rx.view, copy_of(rbias), view(dh, "dh"), "dh",
                                                   optional_view(seed, "seed"), view(dx, "dx"), p, activation);
          NormArgs norm = norm_args(rx.view, pointer(rweight), nullptr, 0.0, rms);
          norm.h = rows_like(&rh.view, "h", rx.view);
          norm.mean = rms ? nullptr : floats(&rmean.view, "mean", norm.rows);
          norm.rstd = floats(&rrstd.view, "rstd", norm.rows);
          norm.grad_y = rows_like(&rgrad.view, "grad_y", rx.view);
          norm.grad_h = rows_like(pointer(rgrad_h), "grad_h", rx.view);
          norm.dh = const_cast<void*>(dropout.other);
          check_dtype(vsums, "sums", DType::f32);
          check_ndim(vsums, "sums", 2);
          check_size(vsums, "sums", 0, dropout.bias ? 3 : 2);
          check_size(vsums, "sums", 1, norm.features);
          check_contiguous(vsums, "sums");
          unlocked(dropout.numel, [&] { fused_dropout_norm_backward(dropout, norm, vsums.as<float>()); });
        });
}

}  // namespace bigmodel
