// What the kernels of the tile family share: their walk over the units and over the tiles of one
// unit, and what a tile reads of a row.
#pragma once

#include "../families/tile.h"
#include "pipeline.cuh"
#include "scalar.cuh"

namespace dwconv::tile {

// Geometry as kernels want it.
struct Grid : UnitGrid<Geometry> {
  SmallDivisor strips, row_tiles, row_classes, plane_items, unit_channels;

  Grid(const Geometry& geometry, const Problem& problem, const Plan& plan)
      : UnitGrid(geometry, problem, plan),
        strips(g.strips),
        row_tiles(g.row_tiles),
        row_classes(g.row_classes),
        plane_items(g.plane_items),
        unit_channels(g.channels) {}

  __device__ int planes(const Unit& unit) const { return channels_of(unit) * images_of(unit); }
  // The channel of a unit's plane, among those of the unit.
  __device__ int channel(int plane) const { return unit_channels.remainder(plane); }
  // Whole planes follow each other; of a band there is one plane.
  template <typename Type>
  __device__ const Type* source_run(const Type* source, const Unit& unit, RowRange rows) const {
    return source + (first_plane(unit) * g.h.source + rows.first) * g.w.source;
  }
  template <typename Type>
  __device__ Type* result_run(Type* result, const Unit& unit) const {
    return result + (first_plane(unit) * g.h.result + result_rows(unit).first) * g.w.result;
  }
};

// A tile of a unit.
struct Item {
  int plane;
  int row;  // of its first result, in the band
  int column;
};

__device__ inline Item item_at(const Grid& grid, int index) {
  Item item;
  item.column = grid.strips.remainder(index) * grid.g.access.columns();
  const int tile = grid.row_tiles.remainder(index);
  const int row_class = grid.row_classes.remainder(index);
  item.plane = index;
  item.row = row_class + tile * grid.g.tile_rows * grid.g.h.dilation;
  return item;
}

// `count` (1, 2 or 4) neighbouring elements of shared memory, aligned to their size together.
template <typename S, int count>
__device__ inline void load_unit(float* values, const typename S::Type* at) {
  using Type = typename S::Type;
  union {
    typename Word<count * sizeof(Type)>::Type word;
    Type elements[count];
  } unit = {*reinterpret_cast<const typename Word<count * sizeof(Type)>::Type*>(at)};
#pragma unroll
  for (int i = 0; i < count; ++i)
    values[i] = S::widen(unit.elements[i]);
}
template <typename S, int count>
__device__ inline void store_unit(typename S::Type* at, const float* values) {
  using Type = typename S::Type;
  union {
    Type elements[count];
    typename Word<count * sizeof(Type)>::Type word;
  } unit;
#pragma unroll
  for (int i = 0; i < count; ++i)
    unit.elements[i] = S::round(values[i]);
  *reinterpret_cast<typename Word<count * sizeof(Type)>::Type*>(at) = unit.word;
}

// What a tile reads of one row: which elements lie inside the image, and their values. An element
// outside is never loaded, and stays the zero that it was first. Rows alternate between two sets of
// registers, so that one is loaded while the other is used.
template <typename S, int kernel_w, typename A>
class TileRow {
 public:
  __device__ TileRow(int column, const Window& w)
      : step_(A::mode == Mode::dilated ? w.dilation : 1) {
    const int first = A::unit == 1 ? column * w.stride - w.pad : column - kLeft;
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      inside_[i] =
          static_cast<unsigned>(first + i * A::unit * step_) < static_cast<unsigned>(w.source);
    }
#pragma unroll
    for (int set = 0; set < kSets; ++set)
#pragma unroll
      for (int i = 0; i < kUnits * A::unit; ++i)
        values_[set][i] = 0;
    first_ = first;
  }

  // Loads a row, `row` being its column 0, and says whether it counts. One that is not there is
  // skipped by narrow tiles: a warp is on few rows, of which many may be outside. Wide ones read
  // zeros instead: without a branch, loads of the rows to come are under way while others are used.
  __device__ bool load(int parity, const typename S::Type* row, bool there,
                       const typename S::Type* zeros) {
    static_assert(A::unit == 1 || kUnits * A::unit * sizeof(typename S::Type) <= kZeroBytes);
    if (A::unit == 1 && !there) return false;
    const typename S::Type* from = A::unit == 1 || there ? row + first_ : zeros;
#pragma unroll
    for (int i = 0; i < kUnits; ++i)
      if (inside_[i])
        load_unit<S, A::unit>(&values_[parity % kSets][i * A::unit], from + i * A::unit * step_);
    return true;
  }
  // The element that tap j of result c reads.
  __device__ float operator()(int parity, int c, int j) const {
    return values_[parity % kSets][c + j + (A::unit == 1 ? 0 : kLeft - A::pad)];
  }

 private:
  static constexpr int kSets = 2;
  static constexpr int kLeft = round_up(A::pad, A::unit);
  static constexpr int kUnits =
      A::unit == 1 ? kernel_w : (kLeft + 4 + round_up(kernel_w - 1 - A::pad, A::unit)) / A::unit;
  int step_, first_;
  bool inside_[kUnits];
  float values_[kSets][kUnits * A::unit];
};

}  // namespace dwconv::tile
