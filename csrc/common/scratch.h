// Working memory that a thread keeps between calls, so that a small call does not pay for an allocation.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bigmodel {

// What a buffer is for: a thread has one of each, so two that are in use at once never share memory.
enum class ScratchUse { activations, panel };

// `bytes` of 64-byte aligned, uninitialised memory of the calling thread; other threads may use it while it lives.
// One above kKeptBytes is freed with the object, a smaller one stays for the thread's next call.
class Scratch {
 public:
  static constexpr size_t kKeptBytes = size_t{4} << 20;

  Scratch(ScratchUse use, size_t bytes);  // throws std::bad_alloc
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <typename T>
  T* at(size_t byte_offset) const {
    return reinterpret_cast<T*>(data_ + byte_offset);
  }

 private:
  char* data_;
  bool kept_;
};

}  // namespace bigmodel
