// How wide the accesses may be by which rows of 16-bit images are copied.
#pragma once

#include <cstdint>

namespace dwconv {

// Rows of so many elements, the first of which begins at a multiple of 16 bytes, begin at multiples
// of so many bytes.
constexpr int piece_bytes(int columns) {
  return columns % 8 == 0 ? 16 : columns % 4 == 0 ? 8 : columns % 2 == 0 ? 4 : 2;
}

inline constexpr int kWordBytes = 4;  // the least that is copied at a time without waiting for it

// The same of a tensor whose address is known.
inline int piece_bytes(const void* tensor, int columns) {
  const auto bits = static_cast<int>(reinterpret_cast<std::uintptr_t>(tensor) / 2 % 8);
  return piece_bytes(bits | columns);
}

}  // namespace dwconv
