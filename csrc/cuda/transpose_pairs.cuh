// Transposes matrices of 16-bit elements two rows by two columns at a time: elements alone would be
// four times as many accesses.
#pragma once

#include <algorithm>
#include <utility>

#include "../transpose.h"
#include "divide.cuh"

namespace dwconv::pairs {

inline constexpr int kThreads = 256;
inline constexpr int kTilePairs = 1024;  // of two rows and two columns each, in all tiles as many

// A tile, in pairs along each axis.
struct Shape {
  int rows, columns;

  constexpr std::int64_t row_tiles(const Matrices& m) const { return tiles(m.rows, rows); }
  constexpr std::int64_t column_tiles(const Matrices& m) const { return tiles(m.columns, columns); }
  // The share of the tiles that a matrix fills.
  constexpr double filled_by(const Matrices& m) const {
    return static_cast<double>(m.rows * m.columns) /
           static_cast<double>(row_tiles(m) * column_tiles(m) * 4 * kTilePairs);
  }

 private:
  static constexpr std::int64_t tiles(std::int64_t size, int pairs) {
    return (size + 2 * pairs - 1) / (2 * pairs);
  }
};

struct Transposition {
  int rows, columns;
  Divisor row_tiles, column_tiles;
  std::int64_t tiles;

  Transposition(const Matrices& m, const Shape& shape)
      : rows(static_cast<int>(m.rows)),
        columns(static_cast<int>(m.columns)),
        row_tiles(shape.row_tiles(m)),
        column_tiles(shape.column_tiles(m)),
        tiles(m.count * row_tiles.value() * column_tiles.value()) {}
};

// Two neighbouring elements each of a warp's lanes, `width` of which go along a row: a lane has up
// to `left`. `whole`: where one is, so is the other, and both are in one word. Else a row may begin
// within a word; then a lane has the end of one, and the lane after it has the beginning of the
// next.
template <bool whole, int width>
struct PairLoad {
  std::uint32_t word = 0, second = 0;
  bool odd = false, own = false;

  PairLoad() = default;
  __device__ PairLoad(const std::uint16_t* from, int left) {
    // Read once, so the L2 may give them up first.
    if (whole) {
      if (left > 0) word = __ldcs(reinterpret_cast<const std::uint32_t*>(from));
      return;
    }
    odd = reinterpret_cast<std::uintptr_t>(from) % 4 != 0;
    own = odd && (left == 2 || (left > 1 && threadIdx.x % width == width - 1));
    if (left > (odd ? 0 : 1)) {
      word = __ldcs(reinterpret_cast<const std::uint32_t*>(from - odd));
    } else if (left > 0) {
      word = __ldcs(from);
    }
    if (own) second = __ldcs(from + 1);
  }
  // By all lanes.
  __device__ std::uint32_t pair() const {
    if (whole) return word;
    const std::uint32_t next = __shfl_down_sync(0xffffffffu, word, 1, width);
    return odd ? word >> 16 | (own ? second : next) << 16 : word;
  }
};

template <bool whole>
__device__ inline void store_pair(std::uint16_t* to, std::uint32_t pair, int left) {
  if (left <= 0) return;
  if (whole) {
    *reinterpret_cast<std::uint32_t*>(to) = pair;
    return;
  }
  to[0] = static_cast<std::uint16_t>(pair);
  if (left > 1) to[1] = static_cast<std::uint16_t>(pair >> 16);
}

template <int row_pairs, bool even_columns, bool even_rows>
__global__ void __launch_bounds__(kThreads)
    transpose_pairs(const __grid_constant__ Transposition p,
                    const std::uint16_t* __restrict__ source, std::uint16_t* __restrict__ result) {
  constexpr int column_pairs = kTilePairs / row_pairs;
  // Even rows first, and then the others, and the pitch: so the lanes that read neighbouring pairs
  // meet different banks.
  __shared__ std::uint32_t tile[2][row_pairs][column_pairs + std::max(32 / row_pairs, 1)];
  std::int64_t matrix = blockIdx.x;
  const auto split = [&matrix](const Divisor& by) {
    const std::int64_t quotient = by.quotient(matrix);
    const auto rest = static_cast<int>(matrix - quotient * by.value());
    matrix = quotient;
    return rest;
  };
  const int first_column = split(p.column_tiles) * 2 * column_pairs;
  const int first_row = split(p.row_tiles) * 2 * row_pairs;
  const int rows = p.rows - first_row, columns = p.columns - first_column;
  const std::int64_t before = matrix * p.rows * p.columns;

  {
    constexpr int step = kThreads / column_pairs;
    constexpr int count = 2 * row_pairs / step;
    const int pair = threadIdx.x % column_pairs, row = threadIdx.x / column_pairs;
    const std::uint16_t* from = source + before +
                                static_cast<std::int64_t>(first_row + row) * p.columns +
                                first_column + 2 * pair;
    PairLoad<even_columns, std::min(column_pairs, 32)> loads[count];
#pragma unroll
    for (int i = 0; i < count; ++i) {
      loads[i] = {from, row + i * step < rows ? columns - 2 * pair : 0};
      from += static_cast<std::int64_t>(step) * p.columns;
    }
#pragma unroll
    for (int i = 0; i < count; ++i)
      tile[(row + i * step) % 2][(row + i * step) / 2][pair] = loads[i].pair();
  }
  __syncthreads();

  constexpr int step = kThreads / row_pairs;
  const int row_pair = threadIdx.x % row_pairs;
  const int left = rows - 2 * row_pair;
  int pair = threadIdx.x / row_pairs;
  std::uint16_t* to = result + before +
                      static_cast<std::int64_t>(first_column + 2 * pair) * p.rows + first_row +
                      2 * row_pair;
#pragma unroll
  for (int i = 0; i < column_pairs / step; ++i) {
    const std::uint32_t one = tile[0][row_pair][pair], two = tile[1][row_pair][pair];
    if (2 * pair < columns) store_pair<even_rows>(to, __byte_perm(one, two, 0x5410), left);
    if (2 * pair + 1 < columns)
      store_pair<even_rows>(to + p.rows, __byte_perm(one, two, 0x7632), left);
    pair += step;
    to += static_cast<std::int64_t>(2 * step) * p.rows;
  }
}

using Kernel = void (*)(Transposition, const std::uint16_t*, std::uint16_t*);

template <int row_pairs, bool even_columns>
Kernel choose(const Matrices& m) {
  return m.rows % 2 == 0 ? transpose_pairs<row_pairs, even_columns, true>
                         : transpose_pairs<row_pairs, even_columns, false>;
}

// Whether it has transposed them: matrices may fill too little of any tile.
inline bool transpose(const Matrices& m, const void* source, void* result, cudaStream_t stream) {
  constexpr double kEnough = 0.5, kClearly = 1.1;
  Kernel kernel = nullptr;
  Shape shape{};
  double filled = kEnough;
  const auto consider = [&]<int row_pairs>() {
    const Shape candidate{row_pairs, kTilePairs / row_pairs};
    // Pieces of few elements are no better than elements, unless they are whole rows or columns of
    // words: 196 x 512 took 22 us in tiles of 32 rows, and 15 in ones of 64.
    const auto pays = [](std::int64_t size, int pairs) {
      return size <= 2 * pairs && size % 2 == 0;
    };
    if ((row_pairs < 32 && !pays(m.rows, candidate.rows)) ||
        (row_pairs > 64 && !pays(m.columns, candidate.columns)))
      return;
    const double by = candidate.filled_by(m);
    if (by < filled) return;
    filled = kClearly * by;
    shape = candidate;
    kernel = m.columns % 2 == 0 ? choose<row_pairs, true>(m) : choose<row_pairs, false>(m);
  };
  // Square ones first: the others must be better.
  const auto consider_all = [&]<int... row_pairs>(std::integer_sequence<int, row_pairs...>) {
    (consider.template operator()<row_pairs>(), ...);
  };
  consider_all(std::integer_sequence<int, 32, 64, 16, 128, 8, 256, 4>{});
  if (kernel == nullptr) return false;
  const Transposition p(m, shape);
  kernel<<<static_cast<unsigned>(p.tiles), kThreads, 0, stream>>>(
      p, static_cast<const std::uint16_t*>(source), static_cast<std::uint16_t*>(result));
  return true;
}

}  // namespace dwconv::pairs
