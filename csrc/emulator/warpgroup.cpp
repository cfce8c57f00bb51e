#include "warpgroup.h"

#include <cstring>
#include <vector>

#include "block.h"
#include "shared.h"
#include "wide.h"

namespace bigmodel::emulator {

namespace {

constexpr int kRows = 16, kGroupOfWarps = 4;  // a warp's rows of the 64
constexpr int kDepthBytes = 32, kChunk = 16;
constexpr uint32_t kGarbage = 0x7fc1f00d;  // NaN, and a large integer
constexpr uint32_t kAll = 0xffffffffu;

// What a warp's registers will hold: rows x columns, int32 or float bits.
struct Accumulator {
  uint32_t* d[kLanes];
  int columns;
  int pending;  // products under way
  std::vector<uint32_t> values;

  uint32_t& at(int row, int column) { return values[static_cast<size_t>(row * columns + column)]; }
};

struct Product {
  Wgmma call;
  int group;
  Site site;
};

struct Warp {
  std::vector<Product> products;
  std::vector<Accumulator> accumulators;
  int groups = 0;
  size_t issued = 0;  // products so far
  bool fenced = false;
};

struct Warpgroup {
  std::vector<Wgmma> issued;  // all warps must issue the same products
};

Warp warps[kMaxWarps];
Warpgroup warpgroups[kMaxWarps / kGroupOfWarps];

// A descriptor's fields, and where 16 bytes of a row are.
struct Operand {
  uint32_t start, leading, stride;
  int swizzle;

  Operand(uint64_t descriptor, Site site) {
    constexpr int kSwizzles[] = {0, 128, 64, 32};
    start = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
    leading = static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4;
    stride = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
    swizzle = kSwizzles[descriptor >> 62];
    if (descriptor >> 49 & 7) fail(site, "wgmma: the emulator knows descriptors with base offset 0 only");
    if (swizzle && start % static_cast<uint32_t>(8 * swizzle) >= static_cast<uint32_t>(swizzle))
      fail(site, "wgmma: an operand must start in the first row of its swizzle's pattern");
  }

  uint32_t chunk(int row, int c) const {
    const uint32_t r = static_cast<uint32_t>(row % 8), base = start + static_cast<uint32_t>(row / 8) * stride;
    const uint32_t along = static_cast<uint32_t>(c);
    return swizzle ? swizzled(base + r * static_cast<uint32_t>(swizzle) + along * kChunk, swizzle)
                   : base + r * kChunk + along * leading;
  }
};

int first_row() { return current->warp % kGroupOfWarps * kRows; }

template <Element kElement>
void read_row(const Operand& operand, int row, typename Wide<kElement>::Operand* out, Site site) {
  for (int c = 0; c < kDepthBytes / kChunk; ++c) {
    uint32_t units[kChunk / 4];
    std::memcpy(units, written_shared_bytes(operand.chunk(row, c), kChunk, kChunk, site), kChunk);
    for (uint32_t unit : units) {
      Wide<kElement>::widen(unit, out);
      out += Wide<kElement>::kPerUnit;
    }
  }
}

template <Element kElement>
void multiply(const Product& product, Accumulator& accumulator) {
  using W = Wide<kElement>;
  constexpr int kDepth = kDepthBytes / 4 * W::kPerUnit;
  const Operand a(product.call.a, product.site), b(product.call.b, product.site);
  typename W::Operand rows[kRows][kDepth], column[kDepth];
  for (int row = 0; row < kRows; ++row) read_row<kElement>(a, first_row() + row, rows[row], product.site);
  for (int j = 0; j < product.call.columns; ++j) {
    read_row<kElement>(b, j, column, product.site);
    for (int row = 0; row < kRows; ++row) {
      typename W::Sum sum = 0, before = 0;
      for (int k = 0; k < kDepth; ++k) sum += rows[row][k] * column[k];
      if (product.call.accumulate) std::memcpy(&before, &accumulator.at(row, j), 4);
      sum += before;
      std::memcpy(&accumulator.at(row, j), &sum, 4);
    }
  }
}

// Calls f(lane, register, row, column) for a warp's accumulators.
template <typename F>
void for_each_register(int columns, F f) {
  for (int lane = 0; lane < kLanes; ++lane)
    for (int i = 0; i < columns / 2; ++i) f(lane, i, lane / 4 + i / 2 % 2 * 8, i / 4 * 8 + lane % 4 * 2 + i % 2);
}

Accumulator& accumulator_of(Warp& warp, Wgmma* const* lanes, Site site) {
  for (Accumulator& known : warp.accumulators)
    if (known.d[0] == lanes[0]->d) {
      if (known.columns != lanes[0]->columns) fail(site, "wgmma: an accumulator in two shapes at a time");
      return known;
    }
  Accumulator fresh;
  fresh.columns = lanes[0]->columns;
  fresh.pending = 0;
  fresh.values.resize(static_cast<size_t>(kRows * fresh.columns));
  for (int l = 0; l < kLanes; ++l) fresh.d[l] = static_cast<uint32_t*>(lanes[l]->d);
  for_each_register(fresh.columns, [&](int lane, int i, int row, int column) {
    fresh.at(row, column) = fresh.d[lane][i];
    fresh.d[lane][i] = kGarbage;
  });
  warp.accumulators.push_back(std::move(fresh));
  return warp.accumulators.back();
}

void check_same_in_warpgroup(Warp& warp, const Wgmma& own, Site site) {
  std::vector<Wgmma>& issued = warpgroups[current->warp / kGroupOfWarps].issued;
  const size_t k = warp.issued++;
  if (k == issued.size()) issued.push_back(own);
  const Wgmma& other = issued[k];
  if (other.a != own.a || other.b != own.b || other.columns != own.columns || other.element != own.element ||
      other.accumulate != own.accumulate)
    fail(site, "wgmma: the warps of the warpgroup do not ask for the same product");
}

void issue(Wgmma* const* lanes, uint32_t, Site site) {
  Warp& warp = warps[current->warp];
  const Wgmma& own = *lanes[0];
  for (int l = 1; l < kLanes; ++l)
    if (lanes[l]->a != own.a || lanes[l]->b != own.b || lanes[l]->accumulate != own.accumulate)
      fail(site, "wgmma: the lanes of the warp do not ask for the same product", &lane_of_warp(l));
  if (!warp.fenced) fail(site, "wgmma: no wgmma.fence since the last group");
  check_same_in_warpgroup(warp, own, site);
  const Operand a(own.a, site), b(own.b, site);
  for (int c = 0; c < kDepthBytes / kChunk; ++c) {
    for (int row = 0; row < kRows; ++row) check_visible_to_async(a.chunk(first_row() + row, c), kChunk, site);
    for (int j = 0; j < own.columns; ++j) check_visible_to_async(b.chunk(j, c), kChunk, site);
  }
  ++accumulator_of(warp, lanes, site).pending;
  warp.products.push_back({own, warp.groups, site});
}

void finish(const Product& product, Warp& warp) {
  size_t i = 0;
  while (warp.accumulators[i].d[0] != product.call.d) ++i;
  Accumulator& accumulator = warp.accumulators[i];
  switch (product.call.element) {
    case Element::s8:
      multiply<Element::s8>(product, accumulator);
      break;
    case Element::bf16:
      multiply<Element::bf16>(product, accumulator);
      break;
    case Element::f16:
      multiply<Element::f16>(product, accumulator);
      break;
  }
  if (--accumulator.pending) return;
  for_each_register(accumulator.columns, [&](int lane, int r, int row, int column) {
    accumulator.d[lane][r] = accumulator.at(row, column);
  });
  warp.accumulators.erase(warp.accumulators.begin() + static_cast<std::ptrdiff_t>(i));
}

void wait(int* const* lanes, uint32_t, Site) {
  Warp& warp = warps[current->warp];
  size_t kept = 0;
  for (const Product& product : warp.products) {
    if (product.group < warp.groups - *lanes[0])
      finish(product, warp);
    else
      warp.products[kept++] = product;
  }
  warp.products.resize(kept);
}

}  // namespace

void start_warpgroups() {
  for (Warp& warp : warps) warp = Warp();
  for (Warpgroup& group : warpgroups) group = Warpgroup();
}

void wgmma_fence(Site site) {
  if (!synchronises(site, "wgmma.fence")) return;
  char nothing = 0;
  meet<char>(
      "wgmma.fence", kAll, nothing, [](char* const*, uint32_t, Site) { warps[current->warp].fenced = true; }, site);
}

void wgmma(Wgmma own, Site site) { meet<Wgmma>("wgmma.mma_async", kAll, own, issue, site); }

void wgmma_commit(Site site) {
  char nothing = 0;
  meet<char>(
      "wgmma.commit_group", kAll, nothing,
      [](char* const*, uint32_t, Site) {
        ++warps[current->warp].groups;
        warps[current->warp].fenced = false;
      },
      site);
}

void wgmma_wait(int groups_left, Site site) {
  if (synchronises(site, "wgmma.wait_group")) meet<int>("wgmma.wait_group", kAll, groups_left, wait, site);
}

}  // namespace bigmodel::emulator
