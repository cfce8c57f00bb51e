#include <algorithm>
#include <cstring>

#include "../common/half.h"
#include "binary_coded_panel.h"

namespace bigmodel {
namespace {

// Per word [4][16] int16.
void make_tables(const int8_t* q, int64_t words, char* tables) {
  for (int64_t i = 0; i < 4 * words; ++i, q += 4, tables += 32) {
    int16_t table[16];
    for (int code = 0; code < 16; ++code) {
      int sum = 0;
      for (int j = 0; j < 4; ++j) sum += (code >> j & 1) ? q[j] : -q[j];
      table[code] = static_cast<int16_t>(sum);
    }
    std::memcpy(tables, table, sizeof table);
  }
}

// sums[n] += what `words` words of one plane stand for.
void add_words(const char* tables, const uint8_t* packed, int64_t stride, int64_t words, int32_t* sums) {
  for (int64_t w = 0; w < words; ++w, packed += stride, tables += kBinaryTableBytes) {
    int16_t table[4][16];
    std::memcpy(table, tables, sizeof table);
    for (int64_t n = 0; n < kBinaryColumns; ++n) {
      const unsigned code = packed[2 * n] | packed[2 * n + 1] << 8;
      sums[n] += table[0][code & 15] + table[1][code >> 4 & 15] + table[2][code >> 8 & 15] + table[3][code >> 12];
    }
  }
}

void multiply(const BinaryCodedPanel& p) {
  const int64_t stride = p.bits * kBinaryColumns * 2;
  for (int64_t r = 0; r < p.rows; ++r) {
    const char* tables = p.tables + r * p.table_stride;
    const uint8_t* packed = p.packed;
    const uint16_t* scales = p.scales;
    float* z = p.z + r * kBinaryColumns;
    for (int64_t g = 0; g < p.groups; ++g) {
      const int64_t words = g + 1 == p.groups ? p.last_words : p.group_words;
      for (int64_t b = 0; b < p.bits; ++b, scales += kBinaryColumns) {
        int32_t sums[kBinaryColumns] = {};
        add_words(tables, packed + b * kBinaryColumns * 2, stride, words, sums);
        for (int64_t n = 0; n < kBinaryColumns; ++n) z[n] += f16_to_float(scales[n]) * static_cast<float>(sums[n]);
      }
      packed += words * stride;
      tables += words * kBinaryTableBytes;
    }
  }
}

void finish(const BinaryCodedRows& p) {
  for (int64_t r = 0; r < p.rows; ++r) {
    float* z = p.z + r * kBinaryColumns;
    for (int64_t n = 0; n < kBinaryColumns; ++n) {
      z[n] *= p.x_scale[r];
      if (p.bias) z[n] += p.bias[n];
    }
    if (p.activate) p.activate(z, 1, kBinaryColumns, kBinaryColumns, nullptr);
    const int64_t at = r * p.out_stride;
    if (p.out_dtype == DType::f32) {
      std::copy(z, z + p.columns, static_cast<float*>(p.out) + at);
      continue;
    }
    uint16_t* to = static_cast<uint16_t*>(p.out) + at;
    for (int64_t n = 0; n < p.columns; ++n)
      to[n] = p.out_dtype == DType::bf16 ? float_to_bf16(z[n]) : float_to_f16(z[n]);
  }
}

}  // namespace

const BinaryCodedKernels binary_coded_kernels_scalar = {make_tables, nullptr, multiply, finish};

}  // namespace bigmodel
