#include "matrix.h"

#include <cstring>

#include "banks.h"
#include "block.h"
#include "shared.h"
#include "wide.h"

namespace bigmodel::emulator {

namespace {

constexpr int kRows = 16, kColumns = 8, kUnits = 8;  // of an mma; a unit is a 32-bit register along K
constexpr uint32_t kAll = 0xffffffffu;

struct LoadMatrix {
  uint32_t* registers;
  int matrices;
  uint32_t row;
  bool transposed;
};

void load_matrices(LoadMatrix* const* lanes, uint32_t, Site site) {
  for (int m = 0; m < lanes[0]->matrices; ++m) {
    uint16_t matrix[8][8];
    uint32_t rows[8];
    for (int i = 0; i < 8; ++i) {
      rows[i] = lanes[8 * m + i]->row;
      std::memcpy(matrix[i], written_shared_bytes(rows[i], 16, 16, site), 16);
    }
    ++report->matrix_loads;
    report->matrix_conflicts += conflicts_of(rows);
    for (int l = 0; l < kLanes; ++l) {
      const int i = l / 4, j = l % 4 * 2;
      const bool t = lanes[l]->transposed;
      const uint16_t low = t ? matrix[j][i] : matrix[i][j], high = t ? matrix[j + 1][i] : matrix[i][j + 1];
      lanes[l]->registers[m] = low | static_cast<uint32_t>(high) << 16;
    }
  }
}

// The 2-bit position of the kept element `index` of a row.
int position(Mma* const* lanes, int row, int index, int per_unit, int selector) {
  const int group = row % 8, half = row / 8;
  if (per_unit == 4) return lanes[4 * group + half + index / 16 * 2]->metadata >> (index % 16 * 2) & 3;
  return lanes[4 * group + 2 * selector + index / 8]->metadata >> (16 * half + index % 8 * 2) & 3;
}

// Where along K the kept elements of a row of A stand.
void locate(Mma* const* lanes, int row, int count, int per_unit, int* at, Site site) {
  int before = -1;
  for (int i = 0; i < count; ++i) {
    const int p = position(lanes, row, i, per_unit, lanes[0]->selector);
    if (i % 2 && p <= before)
      fail(site, "mma.sp: positions " + std::to_string(before) + ", " + std::to_string(p) + " of row " +
                     std::to_string(row) + " are not in order");
    before = p;
    at[i] = i / 2 * 4 + p;
  }
}

// What is not kept of a sparse A sees nothing of B, NaN neither.
template <Element kElement, bool kSparse>
void multiply(Mma* const* lanes, Site site) {
  using W = Wide<kElement>;
  constexpr int kPer = W::kPerUnit, kUnitsOfB = kSparse ? 2 * kUnits : kUnits, kKept = kPer * kUnits;
  typename W::Operand a[kRows][kKept], b[kColumns][kPer * kUnitsOfB];
  int at[kRows][kKept];
  for (int row = 0; row < kRows; ++row) {
    for (int u = 0; u < kUnits; ++u) W::widen(lanes[row % 8 * 4 + u % 4]->a[row / 8 + u / 4 * 2], a[row] + u * kPer);
    if (kSparse) locate(lanes, row, kKept, kPer, at[row], site);
  }
  for (int column = 0; column < kColumns; ++column)
    for (int u = 0; u < kUnitsOfB; ++u) W::widen(lanes[column * 4 + u % 4]->b[u / 4], b[column] + u * kPer);
  for (int row = 0; row < kRows; ++row)
    for (int column = 0; column < kColumns; ++column) {
      typename W::Sum sum = 0;
      for (int i = 0; i < kKept; ++i) sum += a[row][i] * b[column][kSparse ? at[row][i] : i];
      static_cast<typename W::Sum*>(lanes[row % 8 * 4 + column / 2]->d)[row / 8 * 2 + column % 2] += sum;
    }
}

void multiply_any(Mma* const* lanes, uint32_t, Site site) {
  const bool sparse = lanes[0]->selector >= 0;
  switch (lanes[0]->element) {
    case Element::s8:
      return sparse ? multiply<Element::s8, true>(lanes, site) : multiply<Element::s8, false>(lanes, site);
    case Element::bf16:
      return sparse ? multiply<Element::bf16, true>(lanes, site) : multiply<Element::bf16, false>(lanes, site);
    case Element::f16:
      return sparse ? multiply<Element::f16, true>(lanes, site) : multiply<Element::f16, false>(lanes, site);
  }
}

}  // namespace

void load_matrix(uint32_t* registers, int matrices, uint32_t row, bool transposed, Site site) {
  LoadMatrix own{registers, matrices, row, transposed};
  meet<LoadMatrix>("ldmatrix", kAll, own, load_matrices, site);
}

void mma(Mma own, Site site) { meet<Mma>(own.selector < 0 ? "mma" : "mma.sp", kAll, own, multiply_any, site); }

}  // namespace bigmodel::emulator
