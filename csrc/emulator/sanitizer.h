// What AddressSanitizer is told, in a build with it: which stack runs, and which bytes of the arena are no variable's.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace bigmodel::emulator {

#if defined(__SANITIZE_ADDRESS__)

constexpr bool kSanitized = true;
inline void forbid(const void* p, size_t bytes) { __asan_poison_memory_region(p, bytes); }
inline void allow(const void* p, size_t bytes) { __asan_unpoison_memory_region(p, bytes); }
inline void leave_stack(void** frames, const void* to, size_t size) {
  __sanitizer_start_switch_fiber(frames, to, size);
}
inline void enter_stack(void* frames, const void** from, size_t* size) {
  __sanitizer_finish_switch_fiber(frames, from, size);
}

#else

constexpr bool kSanitized = false;
inline void forbid(const void*, size_t) {}
inline void allow(const void*, size_t) {}
inline void leave_stack(void**, const void*, size_t) {}
inline void enter_stack(void*, const void**, size_t*) {}

#endif

}  // namespace bigmodel::emulator
