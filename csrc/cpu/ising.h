// Weights as spins: row n of W [N,K] is coded as v_k = sum_b alpha[g, b] s_b(k), s in {-1,+1}, g = k / group_size; a
// code byte holds the spins of one weight, bit b set for s_b = +1. With the moments H [K,K] of the layer's inputs
// (symmetric, positive definite) the energy of a row is
//     E = (v - w)^T H (v - w),    its local field    f = H (v - w).
// Setting v_k to another level, d away, changes E by d (2 f_k + d H_kk) and the field by d H_k: the best level is the
// one nearest to v_k - f_k / H_kk. Scales of one group with the spins kept: E is a quadratic in them, solved exactly.
//
// Rows know nothing of each other, and 16 of them (a tile) are worked on side by side, one to a lane: fields [K][16],
// codes [K][16]. A group is searched with its own part of the field kept up to date at each move, the far part is
// brought up to date once for all of its moves, as a small matrix product. Products and sums are rounded one by one
// (nothing is fused), in an order that depends on no number of threads and no instruction set: codes are the same
// everywhere. Limit: K multiply-adds to an accepted move; the moments are read once for kIsingTiles tiles a sweep.
#pragma once

#include <cstdint>

#include "../common/view.h"

namespace bigmodel {

constexpr int kIsingLanes = 16;
constexpr int kIsingMaxBits = 4;
constexpr int kIsingDraws = 4096;  // entries of the table of thresholds that annealing draws from

// One group's part of a tile. All arrays of [..][16] are 64-byte aligned.
struct IsingBlock {
  int64_t count;         // inputs
  int levels;            // 2^bits
  const float* level;    // [levels][16] what each code stands for
  const float* moments;  // [count][count], rows `stride` apart
  int64_t stride;
  float* field;    // [count][16]
  uint8_t* codes;  // [count][16]
  float* change;   // [count][16] v now less v when the group's search began; added to
};

// How annealing draws: a move that raises the energy by less than temperature * -ln(u) is accepted.
struct IsingHeat {
  const float* temperature;  // [16] of each row
  const float* threshold;    // [kIsingDraws] -ln of uniform draws
  uint64_t seed;
  uint32_t sweep, row, input;  // of the tile's first row and the block's first input: the draw's counter
};

// The sequential start's block: places lo to hi of the order, the last first.
struct IsingStart {
  int64_t lo, hi;
  int bits;
  int64_t group_size, inputs;
  const float* factor;   // [K][K]
  const int64_t* order;  // [K]
  const float* alpha;    // [G][bits][16]
  const float* weight;   // [K][16], by input
  float* field;          // [K][16], by place
  uint8_t* codes;        // [K][16], by input
  float* change;         // [hi - lo][16]
};

struct IsingKernels {
  // field[j] += sum over i of listed: matrix[i * stride + j] * change[i], j in [0, n).
  void (*update)(float* field, int64_t n, const float* matrix, int64_t stride, const float* change,
                 const int32_t* listed, int64_t count);

  // The best level for each weight in turn; gain [16] grows by what each row's energy falls.
  void (*descend)(const IsingBlock& block, float* gain);

  // A random other level for each weight in turn, accepted by chance; gain may shrink.
  void (*anneal)(const IsingBlock& block, const IsingHeat& heat, float* gain);

  void (*start)(const IsingStart& start);

  // spins [bits][count][16] of the codes, +-1.
  void (*spins)(const uint8_t* codes, int64_t count, int bits, float* spins);

  // sums[16] = sum over i < n of a[i] * b[i].
  void (*dot)(const float* a, const float* b, int64_t n, float* sums);

  // to[i] += step [16] * by[i], i < n.
  void (*add)(float* to, const float* by, const float* step, int64_t n);
};

extern const IsingKernels ising_kernels_scalar, ising_kernels_avx2, ising_kernels_avx512;

// codes uint8 [N,K]: nearest levels of the given scales, one input after the other from the last of `order` to the
// first; each moves the targets of those that come after it by the errors made so far. With P the permutation `order`
// and P H P^T = L D L^T, E = sum_k D_k (delta_k + sum_{j>k} L_jk delta_j)^2: each choice makes its own term smallest.
// weight float32 [N,K], factor L float32 [K,K] unit lower triangular, order int64 [K], alpha float16 [N,G,bits].
void ising_start(const View& weight, const View& factor, const View& order, const View& alpha, int64_t group_size,
                 const View& codes);

// One sweep over all weights per temperature: 0 is coordinate descent over levels, above it Metropolis annealing at
// that many times E / K of the row's energy at the start; after each group its scales by least squares, rounded to
// float16 and kept if the energy falls. spins, scales: which of the two may change. A tile that gains less than a
// thousandth of its energy in a sweep ends early, unless it is to be heated again. alpha and codes are changed in
// place.
void ising_descend(const View& weight, const View& moments, const View& codes, const View& alpha, int64_t group_size,
                   const double* temperatures, int64_t sweeps, bool spins, bool scales, int64_t seed);

}  // namespace bigmodel
