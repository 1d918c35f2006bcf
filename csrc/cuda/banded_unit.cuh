// What the kernels of the banded family share: the units of a launch, and how they come into shared
// memory. Rows are cut to the tile's columns and padded with zeros, so that every block of 8
// columns is a row of a matrix for `ldmatrix`.
#pragma once

#include "../families/banded.h"
#include "../families/row_pieces.h"
#include "divide.cuh"
#include "memory.cuh"

namespace dwconv::banded {

// Of a unit: its channel, its first image, its first row of results, its tile of columns.
struct Unit {
  int channel, image, row, tile;
};

// Geometry as kernels want it.
struct Grid {
  Geometry g;
  int channels, batch, stages;
  int units;
  Divisor tiles, segments, image_blocks;
  SmallDivisor band_rows;

  Grid(const Geometry& geometry, const Problem& problem, const Plan& plan)
      : g(geometry),
        channels(static_cast<int>(problem.channels)),
        batch(static_cast<int>(problem.batch)),
        stages(plan.tiling.stages),
        units(static_cast<int>(g.units)),
        tiles(g.tiles),
        segments(g.segments),
        image_blocks(g.image_blocks),
        band_rows(g.band_rows) {}

  __device__ Unit unit(int index) const {
    Unit unit;
    unit.tile = tiles.short_remainder(index);
    unit.row = segments.short_remainder(index) * g.rows;
    unit.image = image_blocks.short_remainder(index) * g.images;
    unit.channel = index;
    return unit;
  }
  // Of this block: units blockIdx.x, blockIdx.x + gridDim.x...
  __device__ int unit_count() const {
    const int blocks = static_cast<int>(gridDim.x);
    return (units - static_cast<int>(blockIdx.x) + blocks - 1) / blocks;
  }
  __device__ Unit unit_of_block(int number) const {
    return unit(static_cast<int>(blockIdx.x + number * gridDim.x));
  }
  __device__ int images_of(const Unit& unit) const { return min(g.images, batch - unit.image); }
  // How many rows above a unit's first one its first band begins, so that tasks of `rows` rows of
  // results come into the next band after a multiple of as many steps.
  __device__ int rows_before(const Unit& unit, int rows) const {
    return (first_row(unit) - unit.row + g.h.pad) % rows;
  }
  // The rows of the image that a unit reads.
  __device__ int first_row(const Unit& unit) const { return max(unit.row - g.h.pad, 0); }
  __device__ int last_row(const Unit& unit) const {
    const int results = min(unit.row + g.rows, g.h.result);
    return min(results - g.h.pad + g.h.kernel - 1, g.h.source);
  }
};

// A warp copies a unit's planes, `bytes` at a time, which rows and their address allow; by pairs of
// elements if that is one. A lane keeps its columns, if it can. `skewed`: whether bands lie apart.
template <int bytes, int blocks, bool skewed>
__device__ inline void copy_planes(const Grid& grid, const Unit& unit, char* stage,
                                   const std::uint16_t* __restrict__ source) {
  const Geometry& g = grid.g;
  constexpr int row_bytes = Shape{blocks, 0}.row_bytes();
  constexpr int bytes_at_once = std::max(bytes, kWordBytes);
  constexpr int pieces = row_bytes / bytes_at_once;
  constexpr int rows_at_once = std::max(1, 32 / pieces);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first_row = pieces < 32 ? lane / pieces : 0;
  const int piece = lane - first_row * pieces;
  if (first_row >= rows_at_once) return;
  const int first = (g.first_block(unit.tile) - g.image_block) * kColumns;
  const int top = grid.first_row(unit);
  const int rows = grid.last_row(unit) - top;
  const int images = grid.images_of(unit);
  const std::int64_t plane = static_cast<std::int64_t>(g.h.source) * g.w.source;
  const std::int64_t first_plane =
      static_cast<std::int64_t>(unit.image) * grid.channels + unit.channel;
  const std::int64_t image_step = grid.channels * plane;
  const int row_step = rows_at_once * g.w.source;
  // Bytes that rows after the lane's first are moved by.
  const int rows_before = first_row + grid.rows_before(unit, Shape{blocks, 0}.rows());
  const auto skew = [&](int row) {
    return skewed ? grid.band_rows.quotient(rows_before + row) * g.skew_bytes : 0;
  };
#pragma unroll 1
  for (int at = piece; at < pieces; at += 32) {
    const int column = first + at * (bytes_at_once / 2);
    const bool inside = static_cast<unsigned>(column) < static_cast<unsigned>(g.w.source);
    const std::uint16_t* from =
        inside ? source + first_plane * plane + (top + first_row) * g.w.source + column : source;
    char* to = stage + first_row * row_bytes + at * bytes_at_once;
    if constexpr (bytes == 2) {
      // They cannot be copied asynchronously, so that a lane waits for several pairs at a time, of
      // whichever image. A pair is a word, or the end of one and the beginning of the next.
      constexpr int batch = 8;
      const bool both = column + 1 < g.w.source;
      const int turns = ceil_div(rows, rows_at_once);  // of an image
      int turn = 0, image = 0;
      while (image < images) {
        std::uint32_t words[batch], next_words[batch];
        bool odd[batch];
        char* places[batch];
#pragma unroll
        for (int i = 0; i < batch; ++i) {
          const bool there = image < images && first_row + turn * rows_at_once < rows;
          const auto address = reinterpret_cast<std::uintptr_t>(from);
          const auto* word = reinterpret_cast<const std::uint32_t*>(address & ~std::uintptr_t{3});
          odd[i] = address % 4 != 0;
          words[i] = there && inside ? word[0] : 0;
          next_words[i] = there && inside && both && odd[i] ? word[1] : 0;
          places[i] = there ? to + skew(turn * rows_at_once) : nullptr;
          ++turn;
          from += row_step;
          to += rows_at_once * row_bytes;
          if (turn >= turns) {
            turn = 0;
            ++image;
            from += image_step - static_cast<std::int64_t>(turns) * row_step;
            to += g.plane_bytes - turns * rows_at_once * row_bytes;
          }
        }
#pragma unroll
        for (int i = 0; i < batch; ++i) {
          if (places[i] == nullptr) continue;
          std::uint32_t pair = odd[i] ? __funnelshift_r(words[i], next_words[i], 16) : words[i];
          if (!both) pair &= 0xffff;
          *reinterpret_cast<std::uint32_t*>(places[i]) = pair;
        }
      }
    } else {
#pragma unroll 1
      for (int image = 0; image < images; ++image) {
        const std::uint16_t* next = from;
#pragma unroll 4
        for (int row = 0; row < rows - first_row; row += rows_at_once) {
          copy_or_zero<bytes>(to + row * row_bytes + skew(row), next, inside);
          next += inside ? row_step : 0;
        }
        from += inside ? image_step : 0;
        to += g.plane_bytes;
      }
    }
  }
}

template <int blocks>
__device__ inline void copy_planes(const Grid& grid, int bytes, const Unit& unit, char* stage,
                                   const std::uint16_t* __restrict__ source) {
  const auto copy = [&]<bool skewed>() {
    if (bytes == 16) return copy_planes<16, blocks, skewed>(grid, unit, stage, source);
    if (bytes == 8) return copy_planes<8, blocks, skewed>(grid, unit, stage, source);
    if (bytes == 4) return copy_planes<4, blocks, skewed>(grid, unit, stage, source);
    copy_planes<2, blocks, skewed>(grid, unit, stage, source);
  };
  if (grid.g.skew_bytes == 0) return copy.template operator()<false>();
  copy.template operator()<true>();
}

}  // namespace dwconv::banded
