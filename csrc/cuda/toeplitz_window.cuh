// What lanes hold of the image: fragments of 16 positions x 16 columns, read from rows that lie in
// shared memory as they do in global memory. All positions are on the same row, and rows outside
// the image are never asked for; columns outside it, or that no result of the strip reads, are
// masked away.
#pragma once

#include "mma.cuh"
#include "toeplitz_unit.cuh"

namespace dwconv::toeplitz {

// Loads bring words of `unit` elements, and are left alone until they are used one step later.
template <int unit>
__device__ inline std::uint32_t load_word(const char* at) {
  return *reinterpret_cast<const typename Word<2 * unit>::Type*>(at);
}

// Selects, of two 16-bit numbers in a word each, those that are wanted; the upper halves are zero.
__device__ inline std::uint32_t pair_of(bool first, bool second) {
  return (first ? 0x10u : 0x32u) | (second ? 0x5400u : 0x7600u);
}

// The bits of those that are.
__device__ inline std::uint32_t halves(bool first, bool second) {
  return (first ? 0xffffu : 0u) | (second ? 0xffff0000u : 0u);
}

// Changes the selection of one number of a pair.
__device__ inline void set_half(std::uint32_t& pair, int half, bool wanted) {
  const std::uint32_t mask = half == 0 ? 0xffu : 0xff00u;
  pair = (pair & ~mask) | (pair_of(wanted, wanted) & mask);
}

// Places in shared memory move on; with `last`, no further than there.
template <int count>
__device__ inline void advance(int (&places)[count], int bytes) {
#pragma unroll
  for (int& place : places)
    place += bytes;
}
template <int count>
__device__ inline void advance(int (&places)[count], int bytes, const int (&last)[count]) {
#pragma unroll
  for (int i = 0; i < count; ++i)
    places[i] = min(places[i] + bytes, last[i]);
}

// Loads the rows of a step. One is there, and the places of `image` are in it; of two, which begin
// at `row` of `rows`, one may be outside.
template <int count, typename Image>
__device__ inline void load_rows(typename Image::Words (&words)[count], const Image& image,
                                 const char* shared, int row, int rows, int pitch) {
  if constexpr (count == 1) {
    image.load(words[0], shared);
  } else {
#pragma unroll
    for (int i = 0; i < count; ++i)
      image.load(words[i], shared + max(min(row + i, rows - 1), 0) * pitch);
  }
}

// The image as the first operand: positions x columns.
template <int unit, int windows>
struct Image {
  static constexpr int kWords = 2 / unit;  // for two columns
  using Words = std::uint32_t[2][2 * windows][kWords];
  int at[2];  // bytes of shared memory: the lane's first column of positions lane / 4 and
              // lane / 4 + 8, in the row that is counted as 0
  std::uint32_t keep[2][2 * windows];

  // The lane's columns of a window that begins at `column`; from `columns` on none counts.
  __device__ void set_columns(int i, int column, int columns) {
#pragma unroll
    for (int half = 0; half < 2 * windows; ++half) {
      const int mine = column + half * 8 + threadIdx.x % 4 * 2;
      const bool first = static_cast<unsigned>(mine) < static_cast<unsigned>(columns);
      const bool second = static_cast<unsigned>(mine + 1) < static_cast<unsigned>(columns);
      keep[i][half] = unit == 2 ? halves(first, second) : pair_of(first, second);
    }
  }
  // `row` is where the row begins, in bytes from row 0.
  __device__ void load(Words& words, const char* row) const {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int half = 0; half < 2 * windows; ++half)
#pragma unroll
        for (int word = 0; word < kWords; ++word)
          words[i][half][word] = load_word<unit>(row + at[i] + 16 * half + 2 * word);
  }
  __device__ void arrange(std::uint32_t (&window)[windows][4], const Words& words) const {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int half = 0; half < 2 * windows; ++half) {
        const auto& pair = words[i][half];
        window[half / 2][half % 2 * 2 + i] =
            unit == 2 ? pair[0] & keep[i][half]
                      : __byte_perm(pair[0], pair[kWords - 1], keep[i][half]);
      }
  }
};

// Positions 2t, 2t + 1, 2t + 8 and 2t + 9 of a lane with t = lane % 4, as sums over positions take
// them.
__device__ inline int summed_position(int i) { return threadIdx.x % 4 * 2 + i % 2 + i / 2 * 8; }

// The image turned, as the first operand of a sum over positions: columns x positions. With unit 2
// rows g and g + 8 of the operand, g = lane / 4, are columns 2g and 2g + 1 of the part.
template <int unit, int windows>
struct TurnedImage {
  static constexpr int kWords = 2 / unit;
  using Words = std::uint32_t[4][windows][kWords];
  int at[4];  // bytes of shared memory: the lane's first column of its positions, in row 0
  std::uint32_t keep[unit == 2 ? 4 : 2][windows * kWords];  // unit 1: of pairs of positions

  __device__ static int column_of(int operand_row) {
    return unit == 2 ? operand_row % 8 * 2 + operand_row / 8 : operand_row;
  }
  // Lanes begin this far into the window.
  __device__ static int first_column() { return threadIdx.x % 32 / 4 * unit; }

  // As above, for position i.
  __device__ void set_columns(int i, int column, int columns) {
#pragma unroll
    for (int word = 0; word < windows * kWords; ++word) {
      const int mine = column + first_column() + word * 8 * unit;
      const bool inside = static_cast<unsigned>(mine) < static_cast<unsigned>(columns);
      if constexpr (unit == 2) {
        const bool second = static_cast<unsigned>(mine + 1) < static_cast<unsigned>(columns);
        keep[i][word] = halves(inside, second);
      } else {
        set_half(keep[i / 2][word], i % 2, inside);
      }
    }
  }
  __device__ void load(Words& words, const char* row) const {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int w = 0; w < windows; ++w)
#pragma unroll
        for (int word = 0; word < kWords; ++word)
          words[i][w][word] = load_word<unit>(row + at[i] + 2 * kWindow * w + 16 * word);
  }
  __device__ void arrange(std::uint32_t (&window)[windows][4], const Words& words) const {
#pragma unroll
    for (int w = 0; w < windows; ++w)
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if constexpr (unit == 2) {
            window[w][2 * i + half] =
                __byte_perm(words[2 * i][w][0] & keep[2 * i][w],
                            words[2 * i + 1][w][0] & keep[2 * i + 1][w], half ? 0x7632 : 0x5410);
          } else {
            window[w][2 * i + half] =
                __byte_perm(words[2 * i][w][half % kWords], words[2 * i + 1][w][half % kWords],
                            keep[i][w * kWords + half % kWords]);
          }
        }
  }
};

// The output gradient, as the second operand of a sum over positions: positions x the 8 columns of
// a strip.
struct Gradient {
  using Words = std::uint32_t[4];
  int at[4];              // as in TurnedImage
  std::uint32_t keep[2];  // of pairs of positions

  __device__ void load(Words& words, const char* row) const {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      words[i] = load_word<1>(row + at[i]);
  }
  // Without `there`, zeros.
  __device__ void arrange(std::uint32_t (&strip)[2], const Words& words, bool there) const {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      strip[i] =
          __byte_perm(words[2 * i], words[2 * i + 1], there ? keep[i] : pair_of(false, false));
  }
};

}  // namespace dwconv::toeplitz
