// Memory that a kernel needs only while it runs. Each thread keeps a few buffers and reuses them, because fresh pages
// cost more than the kernels that fill them.
#pragma once

#include <cstddef>

namespace bigmodel {

constexpr int kScratchSlots = 4;

// At least `bytes` bytes, 64-byte aligned, contents undefined, valid until this thread asks for the same slot again.
// Null if there is no memory (kernels run where nothing may be thrown).
void* scratch(int slot, size_t bytes) noexcept;

}  // namespace bigmodel
