// The lines family: operands of products that add over rows, as they come out of shared memory.
#pragma once

#include "../families/lines.h"
#include "mma.cuh"

namespace dwconv::lines {

// Of 16 rows of the output gradient, blocks of 8 columns, as operands of products that add over the
// rows: a lane has two rows of a column in a word, and two of the other 8 in the next.
template <int count>
struct GradientColumns {
  std::uint32_t blocks[count][2];

  // Lane i gives the address of row i % 16, 16 bytes further on from lane 16.
  __device__ void load(std::uint32_t at) {
#pragma unroll
    for (int i = 0; i + 1 < count; i += 2) {
      std::uint32_t words[4];
      load_transposed(words, at + 16 * i);
#pragma unroll
      for (int k = 0; k < 4; ++k)
        blocks[i + k / 2][k % 2] = words[k];
    }
    if constexpr (count % 2 == 1) load_transposed(blocks[count - 1], at + 16 * (count - 1));
  }
};

// The same of the image, whose products take two neighbouring blocks at a time in the order in
// which an even one and the next are loaded.
template <int count>
struct ImageColumns {
  std::uint32_t pairs[ceil_div(count, 2)][4];

  // Of one pair. Lane i gives the address of row i % 8, 8 rows further down from lane 16, and 16
  // bytes further on in lanes 8 to 15 and 24 to 31.
  __device__ void load(int pair, std::uint32_t at) { load_transposed(pairs[pair], at + 32 * pair); }
  // Block i and the next. Of an odd one they are made once in other registers: copies the compiler
  // would make anew for each product. `zero` is one that it does not know.
  __device__ void operand(std::uint32_t (&words)[4], int i, std::uint32_t zero) const {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const std::uint32_t word = pairs[(i + k % 2) / 2][(i + k) % 2 + k / 2 * 2];
      words[k] = i % 2 == 0 ? word : word | zero;
    }
  }
};

}  // namespace dwconv::lines
