#include <cstring>

#include "peaks.h"

namespace bigmodel {

uint64_t peak_read_scalar(const void* data, int64_t count) {
  const char* at = static_cast<const char*>(data);
  uint64_t sums[8] = {};
  for (int64_t i = 0; i < count; i += 64) {
    for (int j = 0; j < 8; ++j) {
      uint64_t word;
      std::memcpy(&word, at + i + 8 * j, 8);
      sums[j] ^= word;
    }
  }
  uint64_t all = 0;
  for (const uint64_t sum : sums) all ^= sum;
  return all;
}

}  // namespace bigmodel
