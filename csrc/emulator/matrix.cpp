#include "matrix.h"

#include <cstring>
#include <set>

#include "../common/half.h"
#include "block.h"
#include "shared.h"

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

// Rows whose 16 bytes lie in the same four banks are read one after another.
void count_conflicts(const uint32_t (&rows)[8]) {
  std::set<uint32_t> in_banks[8];
  size_t most = 1;
  for (uint32_t row : rows) {
    std::set<uint32_t>& same = in_banks[row / 16 % 8];
    same.insert(row);
    most = same.size() > most ? same.size() : most;
  }
  ++report->matrix_loads;
  report->bank_conflicts += most - 1;
}

void load_matrices(LoadMatrix* const* lanes, uint32_t, Site site) {
  for (int m = 0; m < lanes[0]->matrices; ++m) {
    uint16_t matrix[8][8];
    uint32_t rows[8];
    for (int i = 0; i < 8; ++i) {
      rows[i] = lanes[8 * m + i]->row;
      std::memcpy(matrix[i], written_shared_bytes(rows[i], 16, 16, site), 16);
    }
    count_conflicts(rows);
    for (int l = 0; l < kLanes; ++l) {
      const int i = l / 4, j = l % 4 * 2;
      const bool t = lanes[l]->transposed;
      const uint16_t low = t ? matrix[j][i] : matrix[i][j], high = t ? matrix[j + 1][i] : matrix[i][j + 1];
      lanes[l]->registers[m] = low | static_cast<uint32_t>(high) << 16;
    }
  }
}

// A's rows and B's columns along K, widened; A with zeros where nothing was kept.
template <typename T>
struct Operands {
  T a[kRows][64], b[kColumns][64];
};

template <typename T>
T element(uint32_t unit, int i, Element kind) {
  if (kind == Element::s8) return static_cast<T>(static_cast<int8_t>(unit >> (8 * i)));
  const uint16_t half = static_cast<uint16_t>(unit >> (16 * i));
  return static_cast<T>(kind == Element::bf16 ? bf16_to_float(half) : f16_to_float(half));
}

// The 2-bit position of the kept element `index` of a row.
int position(Mma* const* lanes, int row, int index, int per_unit, int selector) {
  const int group = row % 8, half = row / 8;
  if (per_unit == 4) return lanes[4 * group + half + index / 16 * 2]->metadata >> (index % 16 * 2) & 3;
  return lanes[4 * group + 2 * selector + index / 8]->metadata >> (16 * half + index % 8 * 2) & 3;
}

template <typename T>
void gather(Mma* const* lanes, int per_unit, int k, Operands<T>& o, Site site) {
  const Element kind = lanes[0]->element;
  const int selector = lanes[0]->selector;
  if (selector >= 0) std::memset(o.a, 0, sizeof o.a);
  for (int row = 0; row < kRows; ++row) {
    int before = -1;
    for (int i = 0; i < kUnits * per_unit; ++i) {
      const int unit = i / per_unit;
      const T v = element<T>(lanes[row % 8 * 4 + unit % 4]->a[row / 8 + unit / 4 * 2], i % per_unit, kind);
      if (selector < 0) {
        o.a[row][i] = v;
        continue;
      }
      const int p = position(lanes, row, i, per_unit, selector);
      if (i % 2 && p <= before)
        fail(site, "mma.sp: positions " + std::to_string(before) + ", " + std::to_string(p) + " of row " +
                       std::to_string(row) + " are not in order");
      before = p;
      o.a[row][i / 2 * 4 + p] = v;
    }
  }
  for (int column = 0; column < kColumns; ++column)
    for (int i = 0; i < k; ++i) {
      const int unit = i / per_unit;
      o.b[column][i] = element<T>(lanes[column * 4 + unit % 4]->b[unit / 4], i % per_unit, kind);
    }
}

template <typename T, int kDepth>
void multiply(Mma* const* lanes, const Operands<T>& o) {
  for (int row = 0; row < kRows; ++row)
    for (int column = 0; column < kColumns; ++column) {
      T sum = 0;
      for (int i = 0; i < kDepth; ++i) sum += o.a[row][i] * o.b[column][i];
      static_cast<T*>(lanes[row % 8 * 4 + column / 2]->d)[row / 8 * 2 + column % 2] += sum;
    }
}

void multiply_all(Mma* const* lanes, uint32_t, Site site) {
  const bool sparse = lanes[0]->selector >= 0;
  if (lanes[0]->element == Element::s8) {
    Operands<int32_t> o;
    gather(lanes, 4, sparse ? 64 : 32, o, site);
    sparse ? multiply<int32_t, 64>(lanes, o) : multiply<int32_t, 32>(lanes, o);
  } else {
    Operands<float> o;
    gather(lanes, 2, sparse ? 32 : 16, o, site);
    sparse ? multiply<float, 32>(lanes, o) : multiply<float, 16>(lanes, o);
  }
}

}  // namespace

void load_matrix(uint32_t* registers, int matrices, uint32_t row, bool transposed, Site site) {
  LoadMatrix own{registers, matrices, row, transposed};
  meet<LoadMatrix>("ldmatrix", kAll, own, load_matrices, site);
}

void mma(Mma own, Site site) { meet<Mma>(own.selector < 0 ? "mma" : "mma.sp", kAll, own, multiply_all, site); }

}  // namespace bigmodel::emulator
