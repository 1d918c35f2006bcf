// The hankel family: how a warp comes by the operands of its products, from rows in shared memory.
#pragma once

#include "../families/hankel.h"
#include "memory.cuh"
#include "mma.cuh"

namespace dwconv::hankel {

// A row of the image as left operands. Row i of a block of 8 columns of the filter begins with
// element i, and a lane wants pairs of pairs of elements: 8 bytes that begin anywhere. So a warp
// makes four copies of each of its rows, each of which begins an element further on, while it
// multiplies the row before. In `runs` rows lie as they do in memory, and have no zeros around
// them.
template <bool runs>
class ImageRows {
 public:
  // Of images of so many columns; copies of all warps are at `copies`, of rows of the tile's
  // columns.
  __device__ ImageRows(int width, const Shape& shape, const char* copies) : width_(width) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    copies_ = shared_address(copies) + warp * kCopiesBytes;
    // Of the last ones a row may have fewer pairs than there are lanes.
    if constexpr (!runs) pair_ = min(lane, (8 + shape.tile_w() + shape.steps * kStep) / 4);
  }

  // The column of the filter, of 16, that stands in row `row` of a product; 8 rows further down is
  // the one 2 columns further on.
  static __device__ constexpr int column_of(int row) { return row / 2 * 4 + row % 2; }

  // Rows follow like the one at `row`, where `column` is of the image. What the lane reads of it.
  __device__ std::uint32_t begin(std::uint32_t row, int column) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int before = static_cast<int>(row / 2 % 4);  // elements since a multiple of 8 bytes
    const int element = before + column_of(lane / 4) + lane % 4 * 2;
    at_ = copies_ + element % 2 * (kCopiesBytes / 2) + element / 2 * kPairBytes;
    std::uint32_t part = row - 2 * before;
    if constexpr (runs) {
      const int first = column - before + 4 * lane;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        inside_[i] = (is_inside(first + 2 * i) ? 0xffffu : 0) |
                     (is_inside(first + 2 * i + 1) ? 0xffff0000u : 0);
      // Lanes that have nothing inside need not read far from the row.
      const std::uint32_t begin = row - 2 * column;
      const std::uint32_t low = (begin & ~7u) - kPairBytes;
      const std::uint32_t high = (begin + 2 * (width_ - 1)) & ~7u;
      const int at = static_cast<int>(part) + kPairBytes * lane;
      part =
          static_cast<std::uint32_t>(min(max(at, static_cast<int>(low)), static_cast<int>(high)));
    } else {
      part += kPairBytes * pair_;
    }
    return part;
  }

  // To be called for the first row, and for each other one when the one before it is loaded; the
  // second half when all lanes have it.
  __device__ void begin_copy(std::uint32_t part) {
    load_shared_pair(words_[0], part);
    load_shared_pair(words_[1], part + kPairBytes);
  }
  __device__ void end_copy() const {
    std::uint32_t words[4], odd[3];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      words[i] = words_[i / 2][i % 2];
      if constexpr (runs) words[i] &= inside_[i];
    }
#pragma unroll
    for (int i = 0; i < 3; ++i)
      odd[i] = __funnelshift_r(words[i], words[i + 1], 16);
    __syncwarp();
    const std::uint32_t to = copies_ + threadIdx.x % 32 * 2 * kPairBytes;
    store_shared_quad(to, {words[0], words[1], words[1], words[2]});
    store_shared_quad(to + kCopiesBytes / 2, {odd[0], odd[1], odd[1], odd[2]});
    __syncwarp();
  }

  // Operands of the row that was copied last, each 16 columns further on.
  template <int count>
  __device__ void load(std::uint32_t (&operands)[count][4]) const {
#pragma unroll
    for (int i = 0; i < count; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        std::uint32_t words[2];
        load_shared_pair(words, at_ + (2 * i + half) * 4 * kPairBytes);
        operands[i][2 * half] = words[0];
        operands[i][2 * half + 1] = words[1];
      }
  }

 private:
  __device__ bool is_inside(int column) const {
    return static_cast<unsigned>(column) < static_cast<unsigned>(width_);
  }

  std::uint32_t copies_, at_;
  int width_, pair_;
  std::uint32_t inside_[4];
  std::uint32_t words_[2][2];  // of the next row
};

// Right operands of so many products along 8 rows of the output gradient: blocks of 8 columns.
template <int count>
struct RowBlocks {
  std::uint32_t steps[count][2];

  // Lane i reads row i % 8 of block i / 8, from `at` on.
  __device__ void load(std::uint32_t at) {
#pragma unroll
    for (int i = 0; i + 1 < count; i += 2) {
      std::uint32_t words[4];
      load_matrices(words, at + i * 2 * kStep);
#pragma unroll
      for (int k = 0; k < 4; ++k)
        steps[i + k / 2][k % 2] = words[k];
    }
    if constexpr (count % 2 == 1) load_matrices(steps[count - 1], at + (count - 1) * 2 * kStep);
  }
};

}  // namespace dwconv::hankel
