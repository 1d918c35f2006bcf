// Transposes matrices in tiles whose sides the compiler knows: of words, or of 16-bit elements two
// rows by two columns at a time, which alone would be four times as many accesses.
#pragma once

#include <algorithm>

#include "../transpose.h"
#include "divide.cuh"

namespace dwconv::tiles {

// A tile's sides, in elements.
struct Shape {
  int rows, columns;

  constexpr std::int64_t row_tiles(const Matrices& m) const { return (m.rows + rows - 1) / rows; }
  constexpr std::int64_t column_tiles(const Matrices& m) const {
    return (m.columns + columns - 1) / columns;
  }
  constexpr std::int64_t tiles(const Matrices& m) const {
    return m.count * row_tiles(m) * column_tiles(m);
  }
  // The share of the tiles that matrices fill.
  constexpr double filled_by(const Matrices& m) const {
    return static_cast<double>(m.count * m.rows * m.columns) /
           (static_cast<double>(tiles(m)) * rows * columns);
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
        tiles(shape.tiles(m)) {}
};

// Stores two neighbouring elements each of a warp's lanes, `width` of which go along a row: a lane
// has up to `left`. `whole`: where one is, so is the other, and both are in one word. Else a row
// may begin within a word; then a lane's second element shares one with the next lane's first. By
// all lanes.
template <bool whole, int width>
__device__ inline void store_pairs(std::uint16_t* to, std::uint32_t pair, int left) {
  if (whole) {
    if (left > 0) *reinterpret_cast<std::uint32_t*>(to) = pair;
    return;
  }
  const bool odd = reinterpret_cast<std::uintptr_t>(to) % 4 != 0;
  const std::uint32_t next = __shfl_down_sync(0xffffffffu, pair, 1, width);
  const int lane = static_cast<int>(threadIdx.x) % width;
  if (odd) {
    if (lane == 0 && left > 0) to[0] = static_cast<std::uint16_t>(pair);
    ++to;
    pair = pair >> 16 | next << 16;
    left = lane == width - 1 ? min(left - 1, 1) : left - 1;
  }
  if (left > 1) {
    *reinterpret_cast<std::uint32_t*>(to) = pair;
  } else if (left > 0) {
    to[0] = static_cast<std::uint16_t>(pair);
  }
}

// Where a block's tile begins, and how much of it is there.
struct Place {
  int first_row, first_column, rows, columns;
  std::int64_t before;  // elements of the matrices before

  __device__ Place(const Transposition& p, const Shape& shape) {
    std::int64_t matrix = blockIdx.x;
    first_column = static_cast<int>(p.column_tiles.remainder(matrix)) * shape.columns;
    first_row = static_cast<int>(p.row_tiles.remainder(matrix)) * shape.rows;
    rows = p.rows - first_row;
    columns = p.columns - first_column;
    before = matrix * p.rows * p.columns;
  }
};

// Of a multiprocessor: with 40 registers each, where ptxas would take up to 63.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
inline constexpr int kResidentThreads = 1024;  // no more fit one of sm_75
#else
inline constexpr int kResidentThreads = 1536;
#endif

// A row of a tile in shared memory is that much longer, so that lanes which read a column, or
// columns, meet different banks.
constexpr int padding(int rows) { return std::max(32 / rows, 1); }

template <int threads, int tile_rows, int tile_columns>
__global__ void __launch_bounds__(threads, kResidentThreads / threads)
    transpose_words(const __grid_constant__ Transposition p,
                    const std::uint32_t* __restrict__ source, std::uint32_t* __restrict__ result) {
  constexpr Shape shape{tile_rows, tile_columns};
  constexpr int count = tile_rows * tile_columns / threads;
  __shared__ std::uint32_t tile[shape.rows][shape.columns + padding(shape.rows)];
  const Place place(p, shape);
  const int thread = static_cast<int>(threadIdx.x);

  {
    constexpr int step = threads / shape.columns;
    const int column = thread % shape.columns, row = thread / shape.columns;
    const int rows = column < place.columns ? place.rows : 0;
    const std::uint32_t* from = source + place.before +
                                static_cast<std::int64_t>(place.first_row + row) * p.columns +
                                place.first_column + column;
    std::uint32_t words[count];
#pragma unroll
    for (int i = 0; i < count; ++i) {
      if (row + i * step < rows) words[i] = __ldcs(from);
      from += static_cast<std::int64_t>(step) * p.columns;
    }
#pragma unroll
    for (int i = 0; i < count; ++i)
      tile[row + i * step][column] = words[i];
  }
  __syncthreads();

  constexpr int step = threads / shape.rows;
  const int row = thread % shape.rows;
  int column = thread / shape.rows;
  const int columns = row < place.rows ? place.columns : 0;
  std::uint32_t* to = result + place.before +
                      static_cast<std::int64_t>(place.first_column + column) * p.rows +
                      place.first_row + row;
#pragma unroll
  for (int i = 0; i < count; ++i) {
    if (column < columns) *to = tile[row][column];
    column += step;
    to += static_cast<std::int64_t>(step) * p.rows;
  }
}

// Two neighbouring elements, of which `left` are there, from the beginning of a word. Read once, so
// the L2 may give them up first.
template <bool whole>
__device__ inline std::uint32_t load_pair(const std::uint16_t* from, int left) {
  if (left >= (whole ? 1 : 2)) return __ldcs(reinterpret_cast<const std::uint32_t*>(from));
  return left == 1 ? __ldcs(from) : 0;
}

template <int threads, int row_pairs, int column_pairs, bool even_columns, bool even_rows>
__global__ void __launch_bounds__(threads, kResidentThreads / threads)
    transpose_pairs(const __grid_constant__ Transposition p,
                    const std::uint16_t* __restrict__ source, std::uint16_t* __restrict__ result) {
  // Even rows first, and then the others. Words as they lie in memory: rows of an odd number of
  // elements begin within a word by turns, and then have one word more.
  __shared__ std::uint32_t tile[2][row_pairs][column_pairs + padding(row_pairs)];
  const Place place(p, {2 * row_pairs, 2 * column_pairs});
  const int rows = place.rows, columns = place.columns;
  const auto thread = static_cast<int>(threadIdx.x);
  const std::uint16_t* first = source + place.before +
                               static_cast<std::int64_t>(place.first_row) * p.columns +
                               place.first_column;
  const auto begins_within = [](const std::uint16_t* row) {
    return even_columns ? 0 : static_cast<int>(reinterpret_cast<std::uintptr_t>(row) / 2 % 2);
  };

  {
    constexpr int step = threads / column_pairs;
    constexpr int count = 2 * row_pairs / step;
    const int pair = thread % column_pairs, row = thread / column_pairs;
    const std::uint16_t* from = first + static_cast<std::int64_t>(row) * p.columns;
    std::uint32_t words[count];
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const int within = begins_within(from);
      words[i] = load_pair<even_columns>(from + 2 * pair - within,
                                         row + i * step < rows ? columns - 2 * pair + within : 0);
      from += static_cast<std::int64_t>(step) * p.columns;
    }
#pragma unroll
    for (int i = 0; i < count; ++i)
      tile[(row + i * step) % 2][(row + i * step) / 2][pair] = words[i];
  }
  if (!even_columns && columns >= 2 * column_pairs) {
    for (int row = thread; row < min(rows, 2 * row_pairs); row += threads) {
      const std::uint16_t* from = first + static_cast<std::int64_t>(row) * p.columns;
      if (begins_within(from)) tile[row % 2][row / 2][column_pairs] = from[2 * column_pairs - 1];
    }
  }
  __syncthreads();

  constexpr int step = threads / row_pairs, width = std::min(row_pairs, 32);
  const int row_pair = thread % row_pairs;
  const int left = rows - 2 * row_pair;
  const int within = begins_within(first);  // the even rows, or the others
  int pair = thread / row_pairs;
  std::uint16_t* to = result + place.before +
                      static_cast<std::int64_t>(place.first_column + 2 * pair) * p.rows +
                      place.first_row + 2 * row_pair;
#pragma unroll
  for (int i = 0; i < column_pairs / step; ++i) {
    std::uint32_t one = tile[0][row_pair][pair], two = tile[1][row_pair][pair];
    if (!even_columns) {
      const std::uint32_t next = tile[1 - within][row_pair][pair + 1];
      (within ? one : two) = __funnelshift_r(within ? one : two, next, 16);
    }
    store_pairs<even_rows, width>(to, __byte_perm(one, two, 0x5410), 2 * pair < columns ? left : 0);
    store_pairs<even_rows, width>(to + p.rows, __byte_perm(one, two, 0x7632),
                                  2 * pair + 1 < columns ? left : 0);
    pair += step;
    to += static_cast<std::int64_t>(2 * step) * p.rows;
  }
}

// Matrices and their transposes; both begin at a multiple of 16 bytes.
struct Task {
  Matrices m;
  const void* source;
  void* result;
};

template <typename Word>
using Kernel = void (*)(Transposition, const Word*, Word*);

// A kernel for tiles of some shape, and whether matrices are well served by it.
struct Words {
  using Word = std::uint32_t;
  static constexpr double kClearly = 1.3;  // more of a tile has to be filled than of those before

  template <int threads, int rows, int columns>
  static Kernel<Word> kernel(const Matrices&) {
    return transpose_words<threads, rows, columns>;
  }
  // Pieces of few words are no better than single ones, unless they are whole rows or columns.
  static bool pays(const Matrices& m, const Shape& shape) {
    return (shape.rows >= 32 || m.rows <= shape.rows) &&
           (shape.columns >= 32 || m.columns <= shape.columns);
  }
};

struct Pairs {
  using Word = std::uint16_t;
  static constexpr double kClearly = 1.1;

  template <int threads, int rows, int columns>
  static Kernel<Word> kernel(const Matrices& m) {
    constexpr int row_pairs = rows / 2, column_pairs = columns / 2;
    if (m.columns % 2 == 0) {
      return m.rows % 2 == 0 ? transpose_pairs<threads, row_pairs, column_pairs, true, true>
                             : transpose_pairs<threads, row_pairs, column_pairs, true, false>;
    }
    return m.rows % 2 == 0 ? transpose_pairs<threads, row_pairs, column_pairs, false, true>
                           : transpose_pairs<threads, row_pairs, column_pairs, false, false>;
  }
  // The same of pairs. 196 x 512 took 22 us in tiles of 64 rows, and 15 in ones of 128.
  static bool pays(const Matrices& m, const Shape& shape) {
    const auto whole = [](std::int64_t size, int most) { return size <= most && size % 2 == 0; };
    return (shape.rows >= 64 || whole(m.rows, shape.rows)) &&
           (shape.columns >= 32 || whole(m.columns, shape.columns));
  }
};

// The kernel whose tiles are filled best.
template <typename Way>
class Choice {
  using Word = typename Way::Word;

 public:
  explicit Choice(const Task& task) : task_(task) {}

  // Tiles of `elements`, of so many rows; the first are taken unless others are clearly better.
  template <int threads, int elements, int... rows>
  void consider() {
    (consider_one<threads, rows, elements / rows>(), ...);
  }
  // Whether there is one: matrices may fill too little of any tile.
  bool launch(cudaStream_t stream) const {
    if (kernel_ == nullptr) return false;
    const Transposition p(task_.m, shape_);
    kernel_<<<static_cast<unsigned>(p.tiles), threads_, 0, stream>>>(
        p, static_cast<const Word*>(task_.source), static_cast<Word*>(task_.result));
    return true;
  }

 private:
  template <int threads, int rows, int columns>
  void consider_one() {
    const Shape shape{rows, columns};
    const double filled = shape.filled_by(task_.m);
    if (filled < enough_ || !Way::pays(task_.m, shape)) return;
    enough_ = Way::kClearly * filled;
    shape_ = shape;
    threads_ = threads;
    kernel_ = Way::template kernel<threads, rows, columns>(task_.m);
  }

  const Task& task_;
  double enough_ = 0.5;
  Shape shape_{};
  int threads_ = 0;
  Kernel<Word> kernel_ = nullptr;
};

inline bool transpose_words(const Task& task, cudaStream_t stream) {
  Choice<Words> choice(task);
  choice.consider<256, 4096, 64, 128, 32, 256, 16>();
  return choice.launch(stream);
}

inline bool transpose_pairs(const Task& task, cudaStream_t stream) {
  // Pieces of 256 bytes where there are tiles for all multiprocessors: of rows that begin anywhere,
  // those of 128 are a quarter more sectors.
  constexpr std::int64_t kEnoughTiles = 384;
  Choice<Pairs> choice(task);
  if (Shape{128, 128}.tiles(task.m) >= kEnoughTiles) choice.consider<512, 16384, 128, 256>();
  choice.consider<256, 4096, 64, 128, 32, 256, 16, 512, 8>();
  return choice.launch(stream);
}

}  // namespace dwconv::tiles
