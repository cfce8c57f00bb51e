// Which kernel multiplies, by sizes and device: the heuristic between the ops (int8_linear.h) and the launches
// (int8_launch.h).
#pragma once

#include <cstddef>
#include <cstdint>

namespace bigmodel {

// In the order of the rows they are for; see the files of the same names. skinny_8 and skinny_32 have 8 and 32 outputs
// to a block; tiles are named after their rows and columns.
enum class Int8Kernel : int {
  gemv,
  skinny_8,
  skinny_32,
  tile_64x64,
  tile_128x128,
  tile_128x256,
  wgmma_64x128,
  wgmma_128x128,
  wgmma_128x256,
  wgmma_256x192
};
constexpr const char* kInt8KernelNames[] = {"gemv",          "skinny_8",     "skinny_32",    "tile_64x64",
                                            "tile_128x128",  "tile_128x256", "wgmma_64x128", "wgmma_128x128",
                                            "wgmma_128x256", "wgmma_256x192"};
constexpr int kInt8Kernels = 10;

struct Int8Sizes {
  int64_t m, n, k;
  bool floats;  // the left operand has to be quantized
};

struct Int8Device {
  int architecture;  // 80 for compute capability 8.0
  int multiprocessors;
};

struct Int8Plan {
  Int8Kernel kernel;
  int splits;  // of K; above 1 only for tiles
};

// Throws std::invalid_argument for devices below 80.
Int8Plan plan_int8(const Int8Sizes& sizes, const Int8Device& device);

// Throws std::invalid_argument if the plan is none for these sizes on the device.
void check_plan(const Int8Plan& plan, const Int8Sizes& sizes, const Int8Device& device);

// What the launches need in device memory besides the operands: the quantized rows, their scales, partial sums.
struct Int8Workspace {
  size_t partial, q, scale, bytes;  // where each starts, in bytes (multiples of 256), and all of it
  int64_t q_stride;
};
Int8Workspace int8_workspace(const Int8Plan& plan, const Int8Sizes& sizes);

}  // namespace bigmodel
