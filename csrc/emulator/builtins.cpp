#include "builtins.h"

namespace bigmodel::emulator {

namespace {

template <typename T, typename F>
uint32_t fold(const uint32_t* values, uint32_t mask, F f) {
  bool any = false;
  T result = 0;
  for (int l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    const T v = static_cast<T>(values[l]);
    result = any ? f(result, v) : v;
    any = true;
  }
  return static_cast<uint32_t>(result);
}

uint32_t combine(const uint32_t* values, uint32_t mask, Vote kind) {
  switch (kind) {
    case Vote::ballot: {
      uint32_t bits = 0;
      for (int l = 0; l < kLanes; ++l)
        if (mask >> l & 1) bits |= (values[l] != 0 ? 1u : 0u) << l;
      return bits;
    }
    case Vote::add:
      return fold<uint32_t>(values, mask, [](uint32_t a, uint32_t b) { return a + b; });
    case Vote::max_signed:
      return fold<int32_t>(values, mask, [](int32_t a, int32_t b) { return std::max(a, b); });
    case Vote::min_signed:
      return fold<int32_t>(values, mask, [](int32_t a, int32_t b) { return std::min(a, b); });
    case Vote::max_unsigned:
      return fold<uint32_t>(values, mask, [](uint32_t a, uint32_t b) { return std::max(a, b); });
    case Vote::min_unsigned:
      return fold<uint32_t>(values, mask, [](uint32_t a, uint32_t b) { return std::min(a, b); });
    case Vote::bit_and:
      return fold<uint32_t>(values, mask, [](uint32_t a, uint32_t b) { return a & b; });
    case Vote::bit_or:
      return fold<uint32_t>(values, mask, [](uint32_t a, uint32_t b) { return a | b; });
    case Vote::bit_xor:
      return fold<uint32_t>(values, mask, [](uint32_t a, uint32_t b) { return a ^ b; });
  }
  return 0;
}

struct Ballot {
  uint32_t value;
  Vote kind;
};

}  // namespace

void shuffle(Exchange& own, uint32_t mask, Site site, const char* what) {
  meet<Exchange>(
      what, mask, own,
      [](Exchange* const* lanes, uint32_t present, Site where) {
        uint64_t values[kLanes] = {};
        for (int l = 0; l < kLanes; ++l)
          if (present >> l & 1) values[l] = lanes[l]->value;
        for (int l = 0; l < kLanes; ++l) {
          if (!(present >> l & 1)) continue;
          const int source = lanes[l]->source;
          if (!(present >> source & 1))
            fail(where, "a shuffle from lane " + std::to_string(source) + ", which is not in the mask",
                 &lane_of_warp(l));
          lanes[l]->value = values[source];
        }
      },
      site);
}

uint32_t vote(uint32_t value, Vote kind, uint32_t mask, Site site, const char* what) {
  Ballot own{value, kind};
  meet<Ballot>(
      what, mask, own,
      [](Ballot* const* lanes, uint32_t present, Site) {
        uint32_t values[kLanes] = {};
        Vote common = Vote::ballot;
        for (int l = 0; l < kLanes; ++l) {
          if (!(present >> l & 1)) continue;
          values[l] = lanes[l]->value;
          common = lanes[l]->kind;
        }
        const uint32_t result = combine(values, present, common);
        for (int l = 0; l < kLanes; ++l)
          if (present >> l & 1) lanes[l]->value = result;
      },
      site);
  return own.value;
}

uint32_t match_any(uint64_t value, uint32_t mask, Site site) {
  Exchange own{value, 0};
  meet<Exchange>(
      "__match_any_sync", mask, own,
      [](Exchange* const* lanes, uint32_t present, Site) {
        for (int l = 0; l < kLanes; ++l) {
          if (!(present >> l & 1)) continue;
          uint32_t equal = 0;
          for (int k = 0; k < kLanes; ++k)
            if ((present >> k & 1) && lanes[k]->value == lanes[l]->value) equal |= 1u << k;
          lanes[l]->source = static_cast<int>(equal);
        }
      },
      site);
  return static_cast<uint32_t>(own.source);
}

int vote_of_block(int predicate, Vote kind, Site site) {
  static int voters, yes;
  // Between two barriers nobody can be a vote ahead.
  barrier_sync(0, 0, site, kSyncThreads);
  voters = yes = 0;
  barrier_sync(0, 0, site, kSyncThreads);
  ++voters;
  yes += predicate != 0;
  barrier_sync(0, 0, site, kSyncThreads);
  return kind == Vote::add ? yes : kind == Vote::bit_or ? yes > 0 : yes == voters;
}

}  // namespace bigmodel::emulator

void __syncwarp(uint32_t mask, bigmodel::emulator::Site site) {
  using namespace bigmodel::emulator;
  if (!synchronises(site, "__syncwarp")) return;
  char nothing = 0;
  meet<char>("__syncwarp", mask, nothing, [](char* const*, uint32_t, Site) {}, site);
}
