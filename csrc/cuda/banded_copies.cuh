// How rows of an image come into shared memory for the weight gradient of the banded family: padded
// with zeros to either side, so that no product has to know where an image ends.
#pragma once

#include "../families/banded_wgrad.h"
#include "batches.cuh"
#include "divide.cuh"
#include "memory.cuh"

namespace dwconv::banded {

// All threads of the block copy rows of an image, one after the other, so many pieces each, `bytes`
// at a time. They begin with a column that may lie outside the image: there are zeros.
template <int bytes>
__device__ inline void copy_rows(char* to, const SmallDivisor& pieces, const std::uint16_t* from,
                                 int rows, int columns, int first) {
  const int count = rows * pieces.value();
  const auto place = [&](int i, bool& inside) {
    const int piece = pieces.remainder(i);  // leaves the row in `i`
    const int column = first + piece * (bytes / 2);
    inside = static_cast<unsigned>(column) < static_cast<unsigned>(columns);
    return i * columns + column;
  };
  if constexpr (bytes == 2) {
    const auto load = [&](int i) {
      bool inside;
      const int at = place(i, inside);
      return inside ? from[at] : std::uint16_t{0};
    };
    in_batches<8>(count, load, [&](int i, std::uint16_t value) {
      *reinterpret_cast<std::uint16_t*>(to + i * 2) = value;
    });
  } else {
    for (int i = threadIdx.x; i < count; i += kSumThreads) {
      bool inside;
      const int at = place(i, inside);
      copy_or_zero<bytes>(to + i * bytes, inside ? from + at : from, inside);
    }
  }
}

__device__ inline void copy_rows(char* to, const SmallDivisor& pieces, int bytes,
                                 const std::uint16_t* from, int rows, int columns, int first) {
  if (bytes == 16) return copy_rows<16>(to, pieces, from, rows, columns, first);
  if (bytes == 8) return copy_rows<8>(to, pieces, from, rows, columns, first);
  if (bytes == 4) return copy_rows<4>(to, pieces, from, rows, columns, first);
  copy_rows<2>(to, pieces, from, rows, columns, first);
}

}  // namespace dwconv::banded
