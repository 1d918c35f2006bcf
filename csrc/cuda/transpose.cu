#include "transpose.h"

#include "check.cuh"
#include "divide.cuh"
#include "memory.cuh"
#include "transpose_fixed.cuh"

namespace dwconv {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kBatch = 8;  // elements that a thread has under way

// What a block transposes: so many matrices, or a part of one; and how it lies in shared memory.
struct Tile {
  static constexpr int kBytes = 16 << 10;  // but for what fills the rows up
  static constexpr int kWide = 128;        // elements of a row that are enough
  static constexpr int kShort = 32;        // rows that are copied without regard to where they end

  int matrices = 1, rows = 1, columns = 1;
  int pitch = 1;  // elements from one row to the next

  constexpr Tile(const Matrices& m, int element_bytes) {
    const int most = kBytes / element_bytes;
    if (m.rows * m.columns <= most) {
      rows = static_cast<int>(m.rows);
      columns = static_cast<int>(m.columns);
      matrices = static_cast<int>(std::min<std::int64_t>(most / (rows * columns), m.count));
    } else if (m.rows < m.columns) {
      rows = part(m.rows, kWide);
      columns = part(m.columns, most / rows);
    } else {
      columns = part(m.columns, kWide);
      rows = part(m.rows, most / columns);
    }
    pitch = columns;
    if (copies_whole(m)) return;
    // Lanes that read a column meet different banks: an odd number of words.
    while (pitch * element_bytes % 8 != 4)
      ++pitch;
  }

  // Its rows are short, and lie one behind the other.
  constexpr bool copies_whole(const Matrices& m) const {
    return columns == m.columns && columns < kShort && columns % 8 != 0;
  }
  // The same of its result.
  constexpr bool stores_whole(const Matrices& m) const { return rows == m.rows && rows < kShort; }
  constexpr int shared_bytes(int element_bytes) const {
    return matrices * rows * pitch * element_bytes + 16;
  }

 private:
  // An even part of `size`, at most `most`, that a warp takes 32 of at a time.
  static constexpr int part(std::int64_t size, int most) {
    if (size <= most) return static_cast<int>(size);
    const std::int64_t parts = (size + most - 1) / most;
    return static_cast<int>(
        std::min<std::int64_t>((size + parts * 32 - 1) / (parts * 32) * 32, most / 32 * 32));
  }
};

struct Transposition {
  Matrices m;
  Tile tile;
  bool copies_whole, stores_whole;
  Divisor row_tiles, column_tiles;  // of a matrix
  Divisor rows, columns;            // of the tile

  Transposition(const Matrices& matrices, int element_bytes)
      : m(matrices),
        tile(matrices, element_bytes),
        copies_whole(tile.copies_whole(m)),
        stores_whole(tile.stores_whole(m)),
        row_tiles((m.rows + tile.rows - 1) / tile.rows),
        column_tiles((m.columns + tile.columns - 1) / tile.columns),
        rows(tile.rows),
        columns(tile.columns) {}

  std::int64_t tiles() const {
    return (m.count + tile.matrices - 1) / tile.matrices * row_tiles.value() * column_tiles.value();
  }
};

// Goes through `rows` of `length` elements, a warp's lanes side by side: `load(row, i)` kBatch
// times, and then `store(row, i, word)` of those: of long rows along each, of short ones from row
// to row.
template <typename Word, typename Load, typename Store>
__device__ inline void for_rows(int rows, int length, const Load& load, const Store& store) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto batch = [&](int row, int row_step, int i, int i_step) {
    const auto is_there = [&](int k) {
      return row + k * row_step < rows && i + k * i_step < length;
    };
    Word words[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (is_there(k)) words[k] = load(row + k * row_step, i + k * i_step);
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (is_there(k)) store(row + k * row_step, i + k * i_step, words[k]);
    }
  };
  if (length >= 32 * kBatch / 2) {
    const int pieces = (length + 32 * kBatch - 1) / (32 * kBatch);
    for (int item = warp; item < rows * pieces; item += kWarps) {
      const int row = item / pieces;
      batch(row, 0, (item - row * pieces) * 32 * kBatch + lane, 32);
    }
  } else {
    for (int row = warp; row < rows; row += kWarps * kBatch)
      for (int i = lane; i < length; i += 32)
        batch(row, kWarps, i, 0);
  }
}

// Copies `count` elements to shared memory that lies at the same offset within 16 bytes.
template <typename Word>
__device__ inline void load_run(Word* shared, const Word* global, int count) {
  constexpr int per_vector = 16 / sizeof(Word);
  const int head = min((per_vector - misalignment(global)) % per_vector, count);
  const int vectors = (count - head) / per_vector;
  const int body = head + vectors * per_vector;
  auto* to = reinterpret_cast<uint4*>(shared + head);
  const auto* from = reinterpret_cast<const uint4*>(global + head);
  for (int i = threadIdx.x; i < vectors; i += kThreads)
    to[i] = __ldcs(from + i);
  if (threadIdx.x < head) shared[threadIdx.x] = global[threadIdx.x];
  if (threadIdx.x < count - body) shared[body + threadIdx.x] = global[body + threadIdx.x];
}

template <typename Word>
__global__ void __launch_bounds__(kThreads)
    transpose_tiles(const __grid_constant__ Transposition p, const Word* __restrict__ source,
                    Word* __restrict__ result) {
  extern __shared__ __align__(16) unsigned char memory[];
  const Matrices& m = p.m;
  std::int64_t index = blockIdx.x;
  const int first_column = static_cast<int>(p.column_tiles.remainder(index)) * p.tile.columns;
  const int first_row = static_cast<int>(p.row_tiles.remainder(index)) * p.tile.rows;
  const std::int64_t first_matrix = index * p.tile.matrices;
  const auto matrices =
      static_cast<int>(min(std::int64_t{p.tile.matrices}, m.count - first_matrix));
  const auto rows = static_cast<int>(min(std::int64_t{p.tile.rows}, m.rows - first_row));
  const auto columns =
      static_cast<int>(min(std::int64_t{p.tile.columns}, m.columns - first_column));

  const std::int64_t before = first_matrix * m.rows * m.columns;
  const Word* from = source + before + first_row * m.columns + first_column;
  Word* to = result + before + first_column * m.rows + first_row;
  auto* words = reinterpret_cast<Word*>(memory);
  const int pitch = p.tile.pitch;
  const auto source_pitch = static_cast<int>(m.columns);
  const auto result_pitch = static_cast<int>(m.rows);
  // The source is read once, so the L2 may give it up first: __ldcs.
  if (p.copies_whole) {
    words += misalignment(from);
    load_run(words, from, matrices * rows * columns);
  } else {
    for_rows<Word>(
        matrices * rows, columns,
        [&](int row, int i) { return __ldcs(from + row * source_pitch + i); },
        [&](int row, int i, Word word) { words[row * pitch + i] = word; });
  }
  __syncthreads();

  // Of a tile with several matrices, its rows and columns are all that they have.
  const int matrix_words = rows * pitch;
  const auto at_column = [&](int column) {
    if (matrices == 1) return column;
    const int in_matrix = p.columns.short_remainder(column);
    return column * matrix_words + in_matrix;
  };
  if (p.stores_whole) {
    const int count = matrices * rows * columns;
    for (int first = threadIdx.x; first < count; first += kThreads * kBatch) {
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const int i = first + k * kThreads;
        int column = i;
        const int row = p.rows.short_remainder(column);
        if (i < count) to[i] = words[row * pitch + at_column(column)];
      }
    }
  } else {
    for_rows<Word>(
        matrices * columns, rows,
        [&](int column, int i) { return words[at_column(column) + i * pitch]; },
        [&](int column, int i, Word word) { to[column * result_pitch + i] = word; });
  }
}

template <typename Word>
void launch_transpose(const Matrices& matrices, const void* source, void* result,
                      cudaStream_t stream) {
  const Transposition p(matrices, sizeof(Word));
  transpose_tiles<Word>
      <<<static_cast<unsigned>(p.tiles()), kThreads, p.tile.shared_bytes(sizeof(Word)), stream>>>(
          p, static_cast<const Word*>(source), static_cast<Word*>(result));
  check_launch("transpose");
}

}  // namespace

void transpose(const Matrices& matrices, std::int64_t element_bytes, const void* source,
               void* result, cudaStream_t stream) {
  const tiles::Task task{matrices, source, result};
  if (element_bytes == 4) {
    if (!tiles::transpose_words(task, stream))
      return launch_transpose<std::uint32_t>(matrices, source, result, stream);
  } else if (!tiles::transpose_pairs(task, stream)) {
    return launch_transpose<std::uint16_t>(matrices, source, result, stream);
  }
  check_launch("transpose");
}

}  // namespace dwconv
