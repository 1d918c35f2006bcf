// How wide the accesses may be by which rows of an image are copied and stored.
#pragma once

#include <cstdint>

namespace dwconv::banded {

// The number of bytes that rows of an image can be copied in at a time.
inline int copy_bytes(const void* tensor, int columns) {
  const auto bits =
      reinterpret_cast<std::uintptr_t>(tensor) | static_cast<std::uintptr_t>(columns) * 2;
  return bits % 16 == 0 ? 16 : bits % 8 == 0 ? 8 : bits % 4 == 0 ? 4 : 2;
}

}  // namespace dwconv::banded
