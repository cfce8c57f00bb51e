// The inner part of binary_coded_linear: rows of activations times one panel of 64 outputs, by look-up.
//
// Four inputs with signs have 16 possible sums. They are tabulated once per row of activations; then four bits of a
// weight's plane, read as a number, say which sum is meant, and one shuffle looks it up for 32 outputs at a time. The
// sums are int16: 256 inputs make at most 256 * 127 = 32,512, so longer groups are added up in int32 in pieces of that.
// Wide tables are of 5, 5 and 6 inputs: a quarter fewer look-ups in twice the memory.
#pragma once

#include <cstdint>

#include "../common/view.h"
#include "activate_rows.h"

namespace bigmodel {

constexpr int64_t kBinaryColumns = 64;
constexpr int64_t kBinaryMostBits = 8;
constexpr int64_t kBinaryPieceWords = 16;   // of 16 inputs, that an int16 sum holds
constexpr int64_t kBinaryTableBytes = 128;  // of a word's four tables
constexpr int64_t kBinaryWideBytes = 256;   // of a word's three wide ones

struct BinaryCodedPanel {
  const char* tables;    // [rows, words, kBinaryTableBytes], as this instruction set's make_tables writes them, or
  bool wide;             // [rows, words, kBinaryWideBytes], as make_wide_tables does
  int64_t table_stride;  // bytes between rows
  int64_t rows;
  const uint8_t* packed;   // [words, bits, 64, 2]
  const uint16_t* scales;  // float16 [groups, bits, 64]
  int64_t bits;            // 1 to 8
  int64_t groups;
  int64_t group_words, last_words;  // of each group, and of the last one
  float* z;                         // [rows, 64], added to
};

// A block of finished sums: out = round(act(z * scale + bias)).
struct BinaryCodedRows {
  float* z;  // [rows, 64], overwritten
  int64_t rows;
  const float* x_scale;   // [rows]
  const float* bias;      // [64], or null
  ActivateRows activate;  // or null
  void* out;              // [rows, columns] of out_dtype, out_stride elements between rows
  DType out_dtype;
  int64_t out_stride;
  int64_t columns;  // 1 to 64: how many of the panel's outputs exist
};

struct BinaryCodedKernels {
  void (*make_tables)(const int8_t* q, int64_t words, char* tables);       // q [16 * words], 64-byte aligned tables
  void (*make_wide_tables)(const int8_t* q, int64_t words, char* tables);  // or null
  void (*multiply)(const BinaryCodedPanel&);
  void (*finish)(const BinaryCodedRows&);
};

extern const BinaryCodedKernels binary_coded_kernels_scalar, binary_coded_kernels_avx2, binary_coded_kernels_avx512;

}  // namespace bigmodel
