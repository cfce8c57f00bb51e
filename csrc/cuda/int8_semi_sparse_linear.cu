// int8 products with 2:4 weights on sparse tensor cores: semi_sparse_product.cuh, with int8_linear's way from the sums
// to the results.
#include "int8_result.cuh"
#include "semi_sparse_product.cuh"

namespace bigmodel {

namespace {

struct StoreScaled {
  Int8Result result;
  int m, n;

  template <typename Tile>
  __device__ __forceinline__ void operator()(const typename Tile::Sums& sums, int64_t row, int64_t column) const {
    constexpr int kPerRow = Tile::kOutputs / 4;
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kRows * kPerRow; i += Tile::kThreads) {
      const int r = i / kPerRow, c = i % kPerRow * 4;
      const int64_t at = row + r;
      const int first = static_cast<int>(column) + c;
      if (at >= m || first >= n) continue;
      int32_t sum[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[j] = sums.total(r, c + j);
      store_sums<4>(result, static_cast<int>(at), first, n, load_columns<4>(result, first, n),
                    x_scale_of(result, static_cast<int>(at)), sum);
    }
  }
};

}  // namespace

void launch_int8_semi_sparse_linear(const SemiArgs& args, const Int8Result& result, SemiShape shape, int device,
                                    cudaStream_t stream) {
  const StoreScaled store{result, static_cast<int>(args.m), static_cast<int>(args.n)};
  launch_semi_product<DType::i8>(args, store, "int8_semi_sparse_linear", shape, device, stream);
}

}  // namespace bigmodel
