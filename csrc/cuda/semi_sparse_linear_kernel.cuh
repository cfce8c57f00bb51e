// The product of 2:4 weights in 16-bit floats: semi_sparse_product.cuh, with a bias.
#pragma once

#include "semi_sparse_product.cuh"

namespace bigmodel {

namespace {

template <DType D>
struct StoreWithBias {
  typename FloatElement<D>::Type* out;
  const float* bias;
  int64_t m, n;

  template <typename Tile>
  __device__ __forceinline__ void operator()(const typename Tile::Sums& sums, int64_t row, int64_t column) const {
    sums.template store<D, Tile::kThreads>(out, bias, row, column, m, n);
  }
};

template <DType D>
void launch_shape(const SemiArgs& args, SemiShape shape, int device, cudaStream_t stream) {
  using Type = typename FloatElement<D>::Type;
  const StoreWithBias<D> store{static_cast<Type*>(args.out), args.bias, args.m, args.n};
  launch_semi_product<D>(args, store, "semi_sparse_linear", shape, device, stream);
}

}  // namespace

}  // namespace bigmodel
