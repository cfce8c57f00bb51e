#include "ising_scales.h"

#include <algorithm>
#include <cmath>

#include "../common/half.h"

namespace bigmodel {
namespace {

constexpr int kL = kIsingLanes;

// x of A x = b for a symmetric positive definite A [n][n], by Cholesky; false if A is none in double precision.
bool solve(const double (*a)[kIsingMaxBits], const double* b, int n, double* x) {
  double l[kIsingMaxBits][kIsingMaxBits], y[kIsingMaxBits];
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j <= i; ++j) {
      double sum = a[i][j];
      for (int m = 0; m < j; ++m) sum -= l[i][m] * l[j][m];
      if (i == j && !(sum > 0.0)) return false;
      l[i][j] = i == j ? std::sqrt(sum) : sum / l[j][j];
    }
    y[i] = b[i];
    for (int m = 0; m < i; ++m) y[i] -= l[i][m] * y[m];
    y[i] /= l[i][i];
  }
  for (int i = n - 1; i >= 0; --i) {
    x[i] = y[i];
    for (int m = i + 1; m < n; ++m) x[i] -= l[m][i] * x[m];
    x[i] /= l[i][i];
  }
  return true;
}

}  // namespace

void ising_step(const IsingNormal& normal, int bits, int lane, float* alpha, float* step, float* gain) {
  double a[kIsingMaxBits][kIsingMaxBits], down[kIsingMaxBits], x[kIsingMaxBits], trace = 0.0;
  for (int b = 0; b < bits; ++b) trace += normal.curvature[b][b][lane];
  for (int b = 0; b < bits; ++b) {
    for (int c = 0; c < bits; ++c) a[b][c] = normal.curvature[std::max(b, c)][std::min(b, c)][lane];
    a[b][b] += 1e-6 * trace;  // spins of two bits may agree everywhere
    down[b] = -normal.slope[b][lane];
    step[b * kL + lane] = 0.0f;
  }
  if (!solve(a, down, bits, x)) return;
  double rise = 0.0;
  float rounded[kIsingMaxBits];
  for (int b = 0; b < bits; ++b) {
    const float wanted = alpha[b * kL + lane] + static_cast<float>(x[b]);
    rounded[b] = f16_to_float(float_to_f16(std::min(std::max(wanted, -65504.0f), 65504.0f)));
    x[b] = static_cast<double>(rounded[b]) - alpha[b * kL + lane];
  }
  for (int b = 0; b < bits; ++b) {
    rise += 2.0 * x[b] * normal.slope[b][lane];
    for (int c = 0; c < bits; ++c) rise += x[b] * x[c] * normal.curvature[std::max(b, c)][std::min(b, c)][lane];
  }
  if (!(rise < 0.0)) return;
  for (int b = 0; b < bits; ++b) {
    step[b * kL + lane] = rounded[b] - alpha[b * kL + lane];
    alpha[b * kL + lane] = rounded[b];
  }
  gain[lane] -= static_cast<float>(rise);
}

}  // namespace bigmodel
