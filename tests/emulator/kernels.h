// Small kernels that need each kind of synchronisation, and some that are wrong.
#pragma once

#include <cstdint>

void reverse(int threads, const int* in, int* out);
void rotate(int threads, int steps, const int* in, int* out);
void rotate_in_warp(int steps, const int* in, int* out);
void sum_stages(int tiles, const int* in, int* out);
void hand_over(int rounds, int* out);
void early_return(int threads, int* out);
void collectives(int* out);
void count_conflicts(int stride);
void wrong(const char* what);
