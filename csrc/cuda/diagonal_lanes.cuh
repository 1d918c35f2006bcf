// What the lanes of a warp have of a row and of the filters, as operands of the tensor cores.
#pragma once

#include <iterator>
#include <utility>

#include "../families/diagonal.h"
#include "mma.cuh"
#include "rows.cuh"

namespace dwconv::diagonal {

using rows::Grid;
using rows::Inside;
using rows::Unit;

// Two columns of an image of a unit. Warps that have too few all have the last one.
struct Position {
  int image, strip;

  template <int together>
  __device__ static Position of(const Grid& grid, int index) {
    index = min(index, grid.g.images * grid.g.strips - 1);
    const int whole = grid.g.images / together * together;
    const bool apart = index >= whole * grid.g.strips;
    int turn = apart ? index - whole * grid.g.strips : index / together;
    const int strip = grid.strips.short_remainder(turn);
    return {apart ? whole + turn : turn * together + index % together, strip};
  }
};

// What a warp has: 8 channels, and which of the block's shares of positions.
struct Share {
  int octet, position;

  __device__ explicit Share(const Grid& grid) : position(static_cast<int>(threadIdx.x) / 32) {
    octet = grid.vectors.short_remainder(position);
  }
};

// First operands: of each of a warp's positions neighbouring pixels, two pairs an operand, of the
// even channels and of the odd ones.
template <int pairs>
struct Operands {
  std::uint32_t words[2][pairs][2];  // of positions 0 to 7, and of the others

  // d = operand * filter + c, for operand `of`.
  template <typename Type>
  __device__ void multiply(float (&d)[4], int parity, int of, const std::uint32_t (&filter)[pairs],
                           const float (&c)[4]) const {
    const auto& first = words[parity][2 * of];
    if (2 * of + 1 < pairs) {
      const auto& second = words[parity][min(2 * of + 1, pairs - 1)];
      const std::uint32_t a[4] = {first[0], first[1], second[0], second[1]};
      const std::uint32_t b[2] = {filter[2 * of], filter[min(2 * of + 1, pairs - 1)]};
      multiply_add<Type>(d, a, b, c);
    } else {
      multiply_add<Type>(d, first, filter[2 * of], c);
    }
  }
};

// The same as they come from a row: two channels of a pixel in a word.
template <int pairs>
struct Pixels {
  std::uint32_t words[pairs][4];

  // `at`: where the lane's row of the matrices is, for each pair.
  __device__ void load(const std::uint32_t (&at)[pairs], std::uint32_t stage) {
#pragma unroll
    for (int i = 0; i < pairs; ++i)
      load_matrices(words[i], stage + at[i]);
  }
  __device__ Operands<pairs> operands() const {
    constexpr std::uint32_t kHalves[] = {0x5410, 0x7632};
    Operands<pairs> operands;
#pragma unroll
    for (int i = 0; i < pairs; ++i)
#pragma unroll
      for (int parity = 0; parity < 2; ++parity)
#pragma unroll
        for (int j = 0; j < 2; ++j)
          operands.words[parity][i][j] = __byte_perm(words[i][j], words[i][j + 2], kHalves[parity]);
    return operands;
  }
};

// `launch.template operator()<k>()` for a k x k filter that comes at run time.
template <typename Launch>
void for_kernel(int kernel, const Launch& launch) {
  [&]<int... i>(std::integer_sequence<int, i...>) {
    ((kernel == kKernels[i] ? launch.template operator()<kKernels[i]>() : void()), ...);
  }(std::make_integer_sequence<int, std::size(kKernels)>{});
}

}  // namespace dwconv::diagonal
