// What the kernels of the tile family share: their walk over the units and over the tiles of one
// unit, and the taps of one row.
#pragma once

#include "../families/tile.h"
#include "bulk.cuh"
#include "divide.cuh"
#include "scalar.cuh"
#include "units.cuh"

namespace dwconv::tile {

// Rows of a unit's source that lie inside the image: [first, last).
struct RowRange {
  int first;
  int last;
};

// Geometry as kernels want it.
struct Grid {
  Geometry g;
  std::int64_t channels;
  int images;
  int threads;  // that share the tiles of a unit
  int stages;
  SmallDivisor columns, row_tiles, row_classes;

  Grid(const Geometry& geometry, const Problem& problem, const Tiling& tiling)
      : g(geometry),
        channels(problem.channels),
        images(static_cast<int>(problem.batch)),
        threads(tiling.threads / geometry.roles),
        stages(tiling.stages),
        columns(geometry.w.result),
        row_tiles(geometry.row_tiles),
        row_classes(geometry.h.dilation) {}

  __device__ Unit unit(std::int64_t index) const { return Unit::at(index, images, g.bands); }
  // The last group may have fewer planes.
  __device__ int planes(const Unit& unit) const {
    const std::int64_t left = channels - static_cast<std::int64_t>(unit.group) * g.planes;
    return left < g.planes ? static_cast<int>(left) : g.planes;
  }
  __device__ std::int64_t first_plane(const Unit& unit) const {
    return unit.image * channels + static_cast<std::int64_t>(unit.group) * g.planes;
  }
  // The last band may have fewer rows.
  __device__ int rows(const Unit& unit) const {
    return min(g.rows, g.h.result - unit.band * g.rows);
  }
  __device__ RowRange source_rows(const Unit& unit) const {
    if (g.whole()) return {0, g.h.source};
    const int first = unit.band * g.rows * g.h.stride - g.h.pad;
    return {max(first, 0), min(first + g.h.reach(rows(unit)), g.h.source)};
  }
  // Whole planes follow each other; of a band there is one plane.
  template <typename Type>
  __device__ const Type* source_run(const Type* source, const Unit& unit, RowRange rows) const {
    return source + (first_plane(unit) * g.h.source + rows.first) * g.w.source;
  }
  template <typename Type>
  __device__ Type* result_run(Type* result, const Unit& unit) const {
    return result + (first_plane(unit) * g.h.result + unit.band * g.rows) * g.w.result;
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
  item.column = grid.columns.remainder(index);
  const int tile = grid.row_tiles.remainder(index);
  const int row_class = grid.row_classes.remainder(index);
  item.plane = index;
  item.row = row_class + tile * grid.g.tile_rows * grid.g.h.dilation;
  return item;
}

// The taps of one column of results: which of them lie inside the image, and the elements that they
// read of one row. An element outside is never loaded, and stays the zero that it was first.
template <typename S, int kernel_w, Mode mode>
class RowOfTaps {
 public:
  __device__ RowOfTaps(int column, const Window& w)
      : step_(mode == Mode::dilated ? w.dilation : 1) {
    const int first = column * w.stride - w.pad;
#pragma unroll
    for (int j = 0; j < kernel_w; ++j) {
      inside_[j] = static_cast<unsigned>(first + j * step_) < static_cast<unsigned>(w.source);
      raw_[0][j] = raw_[1][j] = S::round(0);
    }
  }

  // Rows alternate between two sets of registers, so that one is loaded while the other is used.
  __device__ void load(int parity, const typename S::Type* at) {
#pragma unroll
    for (int j = 0; j < kernel_w; ++j)
      if (inside_[j]) raw_[parity][j] = at[j * step_];
  }
  __device__ float operator()(int parity, int j) const { return S::widen(raw_[parity][j]); }

 private:
  int step_;
  bool inside_[kernel_w];
  typename S::Type raw_[2][kernel_w];
};

}  // namespace dwconv::tile
