// Planes turned round on their way through shared memory: from rows as they lie in memory to
// columns, each with its rows next to each other and zeros below them.
#pragma once

#include "../families/columns.h"
#include "image_blocks.cuh"
#include "mma.cuh"

namespace dwconv::columns {

// The rows that are turned round.
struct Rows {
  int width = 1;
  bool pieces = false;  // each is whole pieces of 16 bytes
  bool pairs = false;   // each begins with two elements that can be read at a time
};

inline Rows rows_of(const Tensors& tensors, int width) {
  return {width, begin_with(16, tensors) && width % kBlock == 0,
          begin_with(4, tensors) && width % 2 == 0};
}

__device__ inline void store_word(std::uint32_t at, std::uint32_t word) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(word) : "memory");
}

// What a lane has of the rows of a tile, pairs of rows of each so many, of which `rows` are there.
template <Shape shape, int apart>
struct RowPairs {
  static constexpr int kTurns = shape.rows() / apart;
  int at[kTurns];               // of the first, in bytes
  std::uint32_t masks[kTurns];  // of what is there

  __device__ RowPairs(int lane_row, int rows, int row_bytes) {
    const int last = max(rows - 1, 0);
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      const int row = lane_row + i * apart;
      at[i] = min(row, last) * row_bytes;
      masks[i] = row + 1 < rows ? 0xffffffffu : row < rows ? 0xffffu : 0;
    }
  }
};

// Columns of a tile by a warp that has every so many blocks of them, from one on; of a block, a
// lane has `columns` (1 or 2) of some pairs of rows.
template <Shape shape, int columns>
__device__ inline void turn_columns(std::uint32_t to, std::uint32_t from, int width, int rows,
                                    int part, int parts) {
  constexpr int across = kBlock / columns;
  constexpr int apart = 2 * 32 / across;
  const int lane = threadIdx.x % 32, lane_row = lane / across * 2;
  const int row_bytes = 2 * width, last_row = max(rows - 1, 0) * row_bytes;
  const RowPairs<shape, apart> pairs(lane_row, rows, row_bytes);
  const int first_column = part * kBlock + (lane & (across - 1)) * columns;
  to += first_column * shape.column_bytes() + 2 * lane_row;
  from += 2 * first_column;
#pragma unroll 1
  for (int left = width - first_column; left > 0; left -= parts * kBlock) {
    std::uint32_t words[pairs.kTurns][2];
    const auto load = [](std::uint32_t at) {
      return columns == 2 ? load_shared_word(at) : load_shared_element(at);
    };
#pragma unroll
    for (int i = 0; i < pairs.kTurns; ++i) {
      words[i][0] = load(from + pairs.at[i]);
      words[i][1] = load(from + min(pairs.at[i] + row_bytes, last_row));
    }
#pragma unroll
    for (int i = 0; i < pairs.kTurns; ++i) {
      const std::uint32_t at = to + 2 * i * apart;
      store_word(at, __byte_perm(words[i][0], words[i][1], 0x5410) & pairs.masks[i]);
      if (columns == 2)
        store_word(at + shape.column_bytes(),
                   __byte_perm(words[i][0], words[i][1], 0x7632) & pairs.masks[i]);
    }
    to += parts * kBlock * shape.column_bytes();
    from += parts * 2 * kBlock;
  }
}

// The same where rows are whole pieces of 16 bytes: matrices of 8 rows and as many columns.
template <Shape shape>
__device__ inline void turn_matrices(std::uint32_t to, std::uint32_t from, int width, int rows,
                                     int part, int parts) {
  constexpr int count = shape.steps % 2 == 0 ? 4 : 2;  // at a time
  constexpr int blocks = shape.rows() / kBlock;
  const int lane = threadIdx.x % 32;
  int row_bytes[blocks / count];
  std::uint32_t masks[blocks];
#pragma unroll
  for (int i = 0; i < blocks; ++i) {
    const int left = rows - i * kBlock - (lane & 3) * 2;
    masks[i] = left >= 2 ? 0xffffffffu : left == 1 ? 0xffffu : 0;
    if (i % count == 0) row_bytes[i / count] = max(min(i * kBlock + lane, rows - 1), 0) * 2 * width;
  }
  to += (part * kBlock + lane / 4) * shape.column_bytes() + (lane & 3) * 4;
  from += part * 2 * kBlock;
#pragma unroll 1
  for (int left = width - part * kBlock; left > 0; left -= parts * kBlock) {
#pragma unroll
    for (int first = 0; first < blocks; first += count) {
      std::uint32_t words[count];
      load_transposed(words, from + row_bytes[first / count]);
#pragma unroll
      for (int i = 0; i < count; ++i)
        store_word(to + 2 * kBlock * (first + i), words[i] & masks[first + i]);
    }
    to += parts * kBlock * shape.column_bytes();
    from += parts * 2 * kBlock;
  }
}

// A tile of a plane, of which so many rows are there.
template <Shape shape>
__device__ inline void turn_tile(std::uint32_t to, std::uint32_t from, const Rows& of, int rows,
                                 int part, int parts) {
  if (of.pieces) {
    turn_matrices<shape>(to, from, of.width, rows, part, parts);
  } else if (of.pairs) {
    turn_columns<shape, 2>(to, from, of.width, rows, part, parts);
  } else {
    turn_columns<shape, 1>(to, from, of.width, rows, part, parts);
  }
}

}  // namespace dwconv::columns
