#include "scratch.h"

#include <new>

namespace bigmodel {
namespace {

constexpr std::align_val_t kAlignment{64};

struct Buffer {
  char* data = nullptr;
  size_t bytes = 0;

  ~Buffer() { release(); }
  void release() {
    ::operator delete(data, kAlignment);
    data = nullptr;
    bytes = 0;
  }
};

thread_local Buffer buffers[2];

char* allocate(size_t bytes) { return static_cast<char*>(::operator new(bytes, kAlignment)); }

}  // namespace

Scratch::Scratch(ScratchUse use, size_t bytes) : kept_(bytes <= kKeptBytes) {
  if (!kept_) {
    data_ = allocate(bytes);
    return;
  }
  Buffer& buffer = buffers[static_cast<int>(use)];
  if (buffer.bytes < bytes) {
    buffer.release();
    buffer.data = allocate(bytes);
    buffer.bytes = bytes;
  }
  data_ = buffer.data;
}

Scratch::~Scratch() {
  if (!kept_) ::operator delete(data_, kAlignment);
}

}  // namespace bigmodel
