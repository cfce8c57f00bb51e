#include "ising.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <new>

#include "../common/check.h"
#include "../common/half.h"
#include "../common/parallel.h"
#include "../common/scratch.h"
#include "isa.h"
#include "ising_scales.h"

namespace bigmodel {
namespace {

#if defined(__x86_64__)
constexpr Variants<const IsingKernels*> variants = {
    {&ising_kernels_scalar, &ising_kernels_avx2, &ising_kernels_avx512, nullptr}};
#else
constexpr Variants<const IsingKernels*> variants = {{&ising_kernels_scalar, nullptr, nullptr, nullptr}};
#endif
const KernelLevel level_of_ising("ising_descend", [] { return variants.level(); });
const KernelLevel level_of_ising_start("ising_start", [] { return variants.level(); });

constexpr int kL = kIsingLanes;
constexpr int64_t kIsingTiles = 8;    // tiles that share a read of the moments
constexpr int64_t kStartBlock = 128;  // places between two updates of the far field, at the start
constexpr float kWorth = 1e-3f;       // of its energy: what a sweep must gain for another one
constexpr int64_t kReach = 1024;      // places of the field to an update: so much of the moments stays in cache

// The problem as all threads see it.
struct Problem {
  const IsingKernels& kernels;
  const float* weight;
  const float* matrix;  // moments, or the start's factor
  uint8_t* codes;
  uint16_t* alpha;
  int64_t n, k, groups, group_size;
  int bits;

  int64_t tiles() const { return (n + kL - 1) / kL; }
  int64_t group_begin(int64_t g) const { return g * group_size; }
  int64_t group_count(int64_t g) const { return std::min(group_size, k - g * group_size); }
  // Lanes behind the last row repeat it; what they find is not stored.
  int64_t row(int64_t tile, int lane) const { return std::min(tile * kL + lane, n - 1); }
};

// 16 rows and what the search knows of them.
struct Tile {
  float *field, *weight, *alpha, *change;
  uint8_t* codes;
  int32_t* listed;
  int64_t moved;  // entries of listed
  bool active;
  alignas(64) float energy[kL], temperature[kL], gain[kL];
};

// Memory for the tiles of one thread, cut into 64-byte aligned arrays.
class Arena {
 public:
  explicit Arena(size_t bytes) : at_(static_cast<char*>(scratch(0, bytes))) {}
  explicit operator bool() const { return at_ != nullptr; }
  static size_t rounded(int64_t items, size_t size) { return (static_cast<size_t>(items) * size + 63) / 64 * 64; }
  template <typename T>
  T* take(int64_t items) {
    char* p = at_;
    at_ += rounded(items, sizeof(T));
    return reinterpret_cast<T*>(p);
  }

 private:
  char* at_;
};

size_t tile_bytes(const Problem& p, int64_t block) {
  return Arena::rounded(p.k * kL, 4) * 2 + Arena::rounded(p.groups * p.bits * kL, 4) + Arena::rounded(p.k * kL, 1) +
         Arena::rounded(block * kL, 4) + Arena::rounded(block, 4);
}

void take(Tile& tile, const Problem& p, int64_t block, Arena& arena) {
  tile.field = arena.take<float>(p.k * kL);
  tile.weight = arena.take<float>(p.k * kL);
  tile.alpha = arena.take<float>(p.groups * p.bits * kL);
  tile.codes = arena.take<uint8_t>(p.k * kL);
  tile.change = arena.take<float>(block * kL);
  tile.listed = arena.take<int32_t>(block);
  tile.active = true;
}

void load(Tile& tile, const Problem& p, int64_t index) {
  for (int lane = 0; lane < kL; ++lane) {
    const int64_t row = p.row(index, lane), scales = p.groups * p.bits;
    for (int64_t k = 0; k < p.k; ++k) tile.weight[k * kL + lane] = p.weight[row * p.k + k];
    for (int64_t k = 0; k < p.k; ++k) tile.codes[k * kL + lane] = p.codes[row * p.k + k];
    for (int64_t i = 0; i < scales; ++i) tile.alpha[i * kL + lane] = f16_to_float(p.alpha[row * scales + i]);
  }
  std::fill_n(tile.field, p.k * kL, 0.0f);
}

void store(const Tile& tile, const Problem& p, int64_t index, bool scales_too) {
  for (int lane = 0; lane < kL && index * kL + lane < p.n; ++lane) {
    const int64_t row = index * kL + lane, scales = p.groups * p.bits;
    for (int64_t k = 0; k < p.k; ++k) p.codes[row * p.k + k] = tile.codes[k * kL + lane];
    for (int64_t i = 0; scales_too && i < scales; ++i)
      p.alpha[row * scales + i] = float_to_f16(tile.alpha[i * kL + lane]);
  }
}

// Which inputs of the block moved in any row.
void list_moved(Tile& tile, int64_t count) {
  tile.moved = 0;
  for (int64_t i = 0; i < count; ++i) {
    bool moved = false;
    for (int lane = 0; lane < kL; ++lane) moved |= tile.change[i * kL + lane] != 0.0f;
    tile.listed[tile.moved] = static_cast<int32_t>(i);
    tile.moved += moved;
  }
}

// The moves of the block whose rows of the matrix begin at `row`, onto places [begin, end) of all tiles' fields.
void update_far(const Problem& p, Tile* tiles, int64_t count, int64_t row, int64_t begin, int64_t end) {
  for (int64_t j = begin; j < end; j += kReach)
    for (Tile* t = tiles; t < tiles + count; ++t)
      if (t->active && t->moved)
        p.kernels.update(t->field + j * kL, std::min(kReach, end - j), p.matrix + row * p.k + j, p.k, t->change,
                         t->listed, t->moved);
}

// What each code of a group stands for. [2^bits][16]
void fill_levels(const float* alpha, int bits, float* level) {
  for (int c = 0; c < 1 << bits; ++c)
    for (int lane = 0; lane < kL; ++lane) {
      float sum = 0.0f;
      for (int b = 0; b < bits; ++b) sum += c >> b & 1 ? alpha[b * kL + lane] : -alpha[b * kL + lane];
      level[c * kL + lane] = sum;
    }
}

// Least squares for the group's scales, its spins kept; spins and fields [bits][count][16] are room to work in.
void refit(const Problem& p, Tile& tile, int64_t g, float* spins, float* fields) {
  const int64_t begin = p.group_begin(g), count = p.group_count(g), size = count * kL;
  const IsingKernels& kernels = p.kernels;
  float* const field = tile.field + begin * kL;
  kernels.spins(tile.codes + begin * kL, count, p.bits, spins);
  for (int64_t i = 0; i < count; ++i) tile.listed[i] = static_cast<int32_t>(i);
  std::fill_n(fields, p.bits * size, 0.0f);
  IsingNormal normal;
  for (int b = 0; b < p.bits; ++b) {
    kernels.update(fields + b * size, count, p.matrix + begin * p.k + begin, p.k, spins + b * size, tile.listed, count);
    for (int c = 0; c <= b; ++c) kernels.dot(fields + b * size, spins + c * size, count, normal.curvature[b][c]);
    kernels.dot(field, spins + b * size, count, normal.slope[b]);
  }
  alignas(64) float step[kIsingMaxBits * kL];
  for (int lane = 0; lane < kL; ++lane) ising_step(normal, p.bits, lane, tile.alpha + g * p.bits * kL, step, tile.gain);
  for (int b = 0; b < p.bits; ++b) {
    kernels.add(field, fields + b * size, step + b * kL, count);
    kernels.add(tile.change, spins + b * size, step + b * kL, count);
  }
}

// field = H (v - w), and the energies.
void begin_fields(const Problem& p, Tile* tiles, int64_t count) {
  alignas(64) float level[(1 << kIsingMaxBits) * kL];
  for (int64_t g = 0; g < p.groups; ++g) {
    const int64_t begin = p.group_begin(g), inputs = p.group_count(g);
    for (Tile* t = tiles; t < tiles + count; ++t) {
      fill_levels(t->alpha + g * p.bits * kL, p.bits, level);
      for (int64_t i = 0; i < inputs * kL; ++i)
        t->change[i] = level[t->codes[begin * kL + i] * kL + i % kL] - t->weight[begin * kL + i];
      list_moved(*t, inputs);
    }
    update_far(p, tiles, count, begin, 0, p.k);
  }
  for (Tile* t = tiles; t < tiles + count; ++t) {
    double energy[kL] = {};
    for (int64_t g = 0; g < p.groups; ++g) {
      fill_levels(t->alpha + g * p.bits * kL, p.bits, level);
      for (int64_t i = p.group_begin(g) * kL; i < (p.group_begin(g) + p.group_count(g)) * kL; ++i)
        energy[i % kL] += static_cast<double>(level[t->codes[i] * kL + i % kL] - t->weight[i]) * t->field[i];
    }
    for (int lane = 0; lane < kL; ++lane) t->energy[lane] = static_cast<float>(std::max(energy[lane], 0.0));
  }
}

struct Search {
  const double* temperatures;
  int64_t sweeps;
  bool spins, scales;
  uint64_t seed;
  const float* threshold;  // [kIsingDraws]
};

void sweep_group(const Problem& p, const Search& search, int64_t sweep, Tile& tile, int64_t index, int64_t g,
                 float* spins, float* fields) {
  alignas(64) float level[(1 << kIsingMaxBits) * kL];
  const int64_t begin = p.group_begin(g), count = p.group_count(g);
  fill_levels(tile.alpha + g * p.bits * kL, p.bits, level);
  std::fill_n(tile.change, count * kL, 0.0f);
  const IsingBlock block = {count,
                            1 << p.bits,
                            level,
                            p.matrix + begin * p.k + begin,
                            p.k,
                            tile.field + begin * kL,
                            tile.codes + begin * kL,
                            tile.change};
  if (search.spins && search.temperatures[sweep] > 0.0) {
    const IsingHeat heat = {tile.temperature,
                            search.threshold,
                            search.seed,
                            static_cast<uint32_t>(sweep),
                            static_cast<uint32_t>(index * kL),
                            static_cast<uint32_t>(begin)};
    p.kernels.anneal(block, heat, tile.gain);
  } else if (search.spins) {
    p.kernels.descend(block, tile.gain);
  }
  if (search.scales) refit(p, tile, g, spins, fields);
  list_moved(tile, count);
}

// One sweep of some tiles, the first of them number `first`; false when nothing is left to do.
bool sweep_tiles(const Problem& p, const Search& search, int64_t sweep, Tile* tiles, int64_t count, int64_t first,
                 float* spins, float* fields) {
  const double heat = search.temperatures[sweep];
  for (Tile* t = tiles; t < tiles + count; ++t)
    for (int lane = 0; lane < kL; ++lane) {
      t->temperature[lane] = static_cast<float>(heat * t->energy[lane] / static_cast<double>(p.k));
      t->gain[lane] = 0.0f;
    }
  for (int64_t g = 0; g < p.groups; ++g) {
    const int64_t begin = p.group_begin(g), end = begin + p.group_count(g);
    for (int64_t i = 0; i < count; ++i)
      if (tiles[i].active) sweep_group(p, search, sweep, tiles[i], first + i, g, spins, fields);
    update_far(p, tiles, count, begin, 0, begin);
    update_far(p, tiles, count, begin, end, p.k);
  }
  bool left = false;
  for (Tile* t = tiles; t < tiles + count; ++t) {
    bool gained = heat > 0.0;
    for (int lane = 0; lane < kL; ++lane) gained |= t->gain[lane] > kWorth * t->energy[lane];
    for (int64_t later = sweep + 1; later < search.sweeps; ++later) gained |= search.temperatures[later] > 0.0;
    t->active = t->active && gained;
    left |= t->active;
  }
  return left;
}

// -ln of the middles of equal parts of (0, 1).
const float* thresholds() {
  static const std::array<float, kIsingDraws> table = [] {
    std::array<float, kIsingDraws> made;
    for (int i = 0; i < kIsingDraws; ++i) made[i] = static_cast<float>(-std::log((i + 0.5) / kIsingDraws));
    return made;
  }();
  return table.data();
}

Problem check_problem(const View& weight, const View& matrix, const char* matrix_name, const View& codes,
                      const View& alpha, int64_t group_size) {
  check_ndim(weight, "weight", 2);
  const int64_t n = weight.sizes[0], k = weight.sizes[1];
  check_dtype(weight, "weight", DType::f32);
  check_dtype(matrix, matrix_name, DType::f32);
  check_shape(matrix, matrix_name, {k, k});
  check_dtype(codes, "codes", DType::u8);
  check_shape(codes, "codes", {n, k});
  check_dtype(alpha, "alpha", DType::f16);
  check_ndim(alpha, "alpha", 3);
  BIGMODEL_CHECK(group_size >= 1, "group_size must be at least 1, got ", group_size);
  BIGMODEL_CHECK(k < INT32_MAX && n < INT32_MAX, "weight is too large: ", shape_string(weight));
  const int64_t groups = (k + group_size - 1) / group_size, bits = alpha.sizes[2];
  BIGMODEL_CHECK(bits >= 1 && bits <= kIsingMaxBits, "alpha must have 1 to 4 scales to a group, got shape ",
                 shape_string(alpha));
  check_shape(alpha, "alpha", {n, groups, bits});
  for (const auto& [view, name] : {std::pair<const View&, const char*>{weight, "weight"},
                                   {matrix, matrix_name},
                                   {codes, "codes"},
                                   {alpha, "alpha"}})
    check_contiguous(view, name);
  for (int64_t i = 0; i < k; ++i) {
    const float d = matrix.as<float>()[i * k + i];
    BIGMODEL_CHECK(d > 0.0f && std::isfinite(1.0f / d), matrix_name, " must have a positive diagonal, got ", d,
                   " at input ", i);
  }
  return {*variants.pick(),
          weight.as<float>(),
          matrix.as<float>(),
          codes.as<uint8_t>(),
          alpha.as<uint16_t>(),
          n,
          k,
          groups,
          std::min(group_size, std::max<int64_t>(k, 1)),
          static_cast<int>(bits)};
}

// body(tiles, count, first, arena) on all tiles, some at a time. `block` is the longest block, `extra` bytes more.
template <typename Body>
void for_tiles(const Problem& p, int64_t block, size_t extra, Body&& body) {
  const int64_t tiles = p.tiles(), share = (tiles + num_threads() - 1) / num_threads();
  const int64_t together = std::max<int64_t>(1, std::min(kIsingTiles, share));
  std::atomic<bool> room{true};
  parallel_for((tiles + together - 1) / together, 1, [&](int64_t begin, int64_t end) {
    Tile some[kIsingTiles];
    for (int64_t i = begin; i < end; ++i) {
      Arena arena(tile_bytes(p, block) * static_cast<size_t>(together) + extra);
      if (!arena) {
        room = false;
        return;
      }
      const int64_t first = i * together, count = std::min(together, tiles - first);
      for (int64_t t = 0; t < count; ++t) {
        take(some[t], p, block, arena);
        load(some[t], p, first + t);
      }
      body(some, count, first, arena);
    }
  });
  if (!room) throw std::bad_alloc();
}

}  // namespace

void ising_start(const View& weight, const View& factor, const View& order, const View& alpha, int64_t group_size,
                 const View& codes) {
  const Problem p = check_problem(weight, factor, "factor", codes, alpha, group_size);
  check_dtype(order, "order", DType::i64);
  check_shape(order, "order", {p.k});
  check_contiguous(order, "order");
  const int64_t* places = order.as<int64_t>();
  for (int64_t i = 0; i < p.k; ++i)
    BIGMODEL_CHECK(places[i] >= 0 && places[i] < p.k, "order must hold inputs in [0, ", p.k, "), got ", places[i]);
  if (p.n == 0 || p.k == 0) return;
  for_tiles(p, kStartBlock, 0, [&](Tile* tiles, int64_t count, int64_t first, Arena&) {
    for (int64_t hi = p.k; hi > 0; hi -= std::min(kStartBlock, hi)) {
      const int64_t lo = std::max<int64_t>(hi - kStartBlock, 0);
      for (Tile* t = tiles; t < tiles + count; ++t) {
        p.kernels.start(
            {lo, hi, p.bits, p.group_size, p.k, p.matrix, places, t->alpha, t->weight, t->field, t->codes, t->change});
        list_moved(*t, hi - lo);
      }
      update_far(p, tiles, count, lo, 0, lo);
    }
    for (int64_t t = 0; t < count; ++t) store(tiles[t], p, first + t, false);
  });
}

void ising_descend(const View& weight, const View& moments, const View& codes, const View& alpha, int64_t group_size,
                   const double* temperatures, int64_t sweeps, bool spins, bool scales, int64_t seed) {
  const Problem p = check_problem(weight, moments, "moments", codes, alpha, group_size);
  for (int64_t i = 0; i < sweeps; ++i)
    BIGMODEL_CHECK(temperatures[i] >= 0.0 && std::isfinite(temperatures[i]),
                   "temperatures must be finite and not negative, got ", temperatures[i]);
  for (int64_t i = 0; i < p.n * p.k; ++i)
    BIGMODEL_CHECK(p.codes[i] < 1 << p.bits, "codes must be below 2^", p.bits, ", got ", int{p.codes[i]});
  if (p.n == 0 || p.k == 0) return;
  const Search search = {temperatures, sweeps, spins, scales, static_cast<uint64_t>(seed), thresholds()};
  const int64_t room = p.bits * p.group_size * kL;
  for_tiles(p, p.group_size, Arena::rounded(room, 4) * 2, [&](Tile* tiles, int64_t count, int64_t first, Arena& arena) {
    float *signs = arena.take<float>(room), *fields = arena.take<float>(room);
    begin_fields(p, tiles, count);
    for (int64_t sweep = 0; sweep < sweeps; ++sweep)
      if (!sweep_tiles(p, search, sweep, tiles, count, first, signs, fields)) break;
    for (int64_t t = 0; t < count; ++t) store(tiles[t], p, first + t, true);
  });
}

}  // namespace bigmodel
