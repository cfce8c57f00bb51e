// Large outputs on fresh memory: the first write to each 4 KiB page is a trip through the kernel, which costs several
// times what the write does.
#pragma once

#include <cstddef>

namespace bigmodel {

constexpr size_t kHugePageBytes = size_t{2} << 20;

// Tell the system that all of [data, data + bytes) is about to be written: it may then hand out 2 MiB pages at once
// (Linux, where transparent huge pages are "madvise" or "always"). Only a hint: contents stay as they are, memory
// already there costs one system call, and nothing happens below a few huge pages. Call it before the first write.
void about_to_write(void* data, size_t bytes) noexcept;

}  // namespace bigmodel
