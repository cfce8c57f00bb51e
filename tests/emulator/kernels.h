// Small kernels that need each kind of synchronisation, and some that are wrong.
#pragma once

#include <cstdint>

void order(int threads, int* count, int* out);
void reverse(int threads, const int* in, int* out);
void reverse_twice(int threads, const int* in, int* out);
void rotate(int threads, int steps, const int* in, int* out);
void rotate_in_warp(int steps, const int* in, int* out);
void sum_stages(int tiles, const int* in, int* out);
void hand_over(int rounds, int* out);
void early_return(int threads, int* out);
void collectives(int* out);
void count_conflicts(int stride);
void wrong(const char* what);

// TMA and wgmma. A tensor of int32 [z][y][x] and a box at (x, y, z) of it.
struct TensorBox {
  const void* address;
  int64_t sizes[3];
  int box[3], at[3];
  int rank, swizzle;  // swizzle in bytes
};
void load_box(const TensorBox& box, int* out);
void store_box(const TensorBox& box, const int* in);
void sum_tiles(int tiles, const int* in, int* out);
void product_s8(int tiles, const void* a, const void* b, void* out);
void product_bf16(int tiles, const void* a, const void* b, void* out);
void peek(int* before, int* after);
void wrong_on_sm90(const char* what);
