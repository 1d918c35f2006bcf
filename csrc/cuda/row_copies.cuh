// How rows of 16-bit images come into shared memory, each at a multiple of 16 bytes, whichever its
// own address is.
#pragma once

#include <cstdint>

#include "memory.cuh"

namespace dwconv {

// Some columns of rows of images: where they are in the first and in shared memory, and how far on
// in the next row and the next image, in elements and in bytes.
struct RowsToCopy {
  const std::uint16_t* from;
  char* to;
  int from_pitch, to_pitch;
  std::int64_t from_image;
  int to_image;
  int rows, images;

  // Whether a row of the first image begins with the second element of a word.
  __device__ bool is_odd(int row) const {
    const auto elements = static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(from) / 2);
    return (elements + static_cast<unsigned>(row) * from_pitch) % 2 != 0;
  }
  // Leaves the others.
  __device__ void pass_image() {
    from += from_image;
    to += to_image;
    --images;
  }
};

// How the threads of a block share the pieces of rows: each has a column of them.
struct Pieces {
  int columns, bytes, count;  // of a row
  int row, piece;             // the thread's first
  int rows_at_once;
  bool in_words;  // rows of an odd number of elements come as the words that they lie in

  __device__ Pieces(int columns, int bytes, bool in_words)
      : columns(columns),
        bytes(in_words ? 4 : bytes),
        count(in_words ? columns / 2 + 1 : columns * 2 / bytes),
        row(0),
        piece(static_cast<int>(threadIdx.x)),
        in_words(in_words) {
    const int threads = static_cast<int>(blockDim.x);
    if (columns == 0) count = 0;
    rows_at_once = max(threads / max(count, 1), 1);
    if (count < threads && count > 0) {
      row = piece / count;
      piece -= row * count;
      if (row >= rows_at_once) piece = count;  // has none
    }
  }
};

template <int bytes, bool in_words = false>
__device__ inline void copy_image(const RowsToCopy& r, const Pieces& pieces) {
#pragma unroll 1
  for (int piece = pieces.piece; piece < pieces.count; piece += static_cast<int>(blockDim.x)) {
    const std::uint16_t* from = r.from + pieces.row * r.from_pitch + piece * (bytes / 2);
    char* to = r.to + pieces.row * r.to_pitch + piece * bytes;
    for (int row = pieces.row; row < r.rows; row += pieces.rows_at_once) {
      auto at = reinterpret_cast<std::uintptr_t>(from);
      if constexpr (in_words) at &= ~std::uintptr_t{3};
      copy_or_zero<bytes>(to, reinterpret_cast<const void*>(at), true);
      from += pieces.rows_at_once * r.from_pitch;
      to += pieces.rows_at_once * r.to_pitch;
    }
  }
}

// All threads of the block start to copy.
__device__ inline void copy_rows(RowsToCopy r, const Pieces& pieces) {
#pragma unroll 1
  for (; r.images > 0; r.pass_image()) {
    if (pieces.in_words) {
      copy_image<4, true>(r, pieces);
    } else if (pieces.bytes == 16) {
      copy_image<16>(r, pieces);
    } else if (pieces.bytes == 8) {
      copy_image<8>(r, pieces);
    } else if (pieces.bytes == 4) {
      copy_image<4>(r, pieces);
    } else {
      copy_image<2>(r, pieces);
    }
  }
}

// When words are there, all warps move the rows that begin with the second element of one, and put
// zeros where a row ends.
__device__ inline void place_rows(RowsToCopy r, const Pieces& pieces) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll 1
  for (; r.images > 0; r.pass_image()) {
#pragma unroll 1
    for (int row = static_cast<int>(threadIdx.x) / 32; row < r.rows;
         row += static_cast<int>(blockDim.x) / 32) {
      const bool odd = r.is_odd(row);
      auto* const words = reinterpret_cast<std::uint32_t*>(r.to + row * r.to_pitch);
      for (int first = 0; first < pieces.count; first += 32) {
        const int i = first + lane;
        std::uint32_t word = i < pieces.count ? words[i] : 0;
        const std::uint32_t next = i + 1 < pieces.count ? words[i + 1] : 0;
        if (odd) word = __funnelshift_r(word, next, 16);
        if (i == pieces.count - 1) word = pieces.columns % 2 != 0 ? word & 0xffff : 0;
        __syncwarp();
        if (i < pieces.count) words[i] = word;
        __syncwarp();
      }
    }
  }
}

}  // namespace dwconv
