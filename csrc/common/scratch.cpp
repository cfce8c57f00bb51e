#include "scratch.h"

#include <cstdlib>

namespace bigmodel {
namespace {

struct Buffer {
  void* data = nullptr;
  size_t bytes = 0;
  ~Buffer() { std::free(data); }
};

}  // namespace

void* scratch(int slot, size_t bytes) noexcept {
  static thread_local Buffer buffers[kScratchSlots];
  Buffer& buffer = buffers[slot];
  if (bytes > buffer.bytes || !buffer.data) {
    std::free(buffer.data);
    const size_t rounded = (bytes + 4096) & ~size_t{4095};
    buffer.data = std::aligned_alloc(64, rounded);
    buffer.bytes = buffer.data ? rounded : 0;
  }
  return buffer.data;
}

}  // namespace bigmodel
