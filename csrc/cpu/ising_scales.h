// Least squares for the scales of one group, its spins kept: see ising.h.
#pragma once

#include "ising.h"

namespace bigmodel {

// The normal equations: curvature S^T H S (its lower triangle) and slope S^T f, of each lane.
struct IsingNormal {
  alignas(64) float curvature[kIsingMaxBits][kIsingMaxBits][kIsingLanes], slope[kIsingMaxBits][kIsingLanes];
};

// The scales' best step in one lane, to values that float16 holds. If the energy falls by it, alpha [bits][16] takes it
// and gain [16] what the energy falls; if not, step [bits][16] is 0.
void ising_step(const IsingNormal& normal, int bits, int lane, float* alpha, float* step, float* gain);

}  // namespace bigmodel
