// What the kernels of the tile family share: their walk over the units and over the tiles of one
// unit, and what a tile reads of a row.
#pragma once

#include "../families/tile.h"
#include "pipeline.cuh"
#include "scalar.cuh"

namespace dwconv::tile {

// Geometry as kernels want it.
struct Grid : UnitGrid<Geometry> {
  SmallDivisor strips, column_classes, row_tiles, row_classes, plane_items, unit_channels;

  Grid(const Geometry& geometry, const Problem& problem, const Plan& plan)
      : UnitGrid(geometry, problem, plan),
        strips(g.strips),
        column_classes(g.column_classes),
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

// A tile of a unit. With a dilation the last columns may be beyond the image.
struct Item {
  int plane;
  int row;  // of its first result, in the band
  int column;
};

__device__ inline Item item_at(const Grid& grid, int index) {
  Item item;
  int strip = grid.strips.remainder(index);
  const int column_class = grid.column_classes.remainder(strip);
  item.column = column_class + strip * grid.g.access.columns * grid.g.column_classes;
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

// What a tile reads of one row: which elements lie inside the image, and their values; those
// outside are zero, and never loaded. Rows alternate between two sets of registers, so that one is
// loaded while the other is used.
template <typename S, int kernel_w, typename A>
class TileRow {
 public:
  __device__ TileRow(int column, const Window& w)
      : step_(A::mode == Mode::dilated ? w.dilation : 1),
        first_(A::unit == 1 ? column * w.stride - w.pad : column - kLeft) {
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      const bool inside =
          static_cast<unsigned>(first_ + i * A::unit * step_) < static_cast<unsigned>(w.source);
      if (kSharing) {
        bits_ |= static_cast<std::uint32_t>(inside) << i;
      } else {
        inside_[i] = inside;
      }
    }
#pragma unroll
    for (int set = 0; set < kSets; ++set)
#pragma unroll
      for (int i = 0; i < kUnits * A::unit; ++i)
        values_[set][i] = 0;
  }

  // Loads a row, `row` being its column 0, and says whether it counts. One that is not there is
  // skipped by tiles of one column: a warp is on few rows, of which many may be outside. Others
  // read zeros instead: without a branch, loads of the rows to come are under way while others are
  // used.
  __device__ bool load(int parity, const typename S::Type* row, bool there,
                       const typename S::Type* zeros) {
    static_assert(A::columns == 1 ||
                  (A::mode == Mode::dilated ? 1 : kUnits * A::unit) * sizeof(typename S::Type) <=
                      kZeroBytes);
    if (A::columns == 1 && !there) return false;
    const typename S::Type* from = A::columns == 1 || there ? row + first_ : zeros;
    const int step = A::mode != Mode::dilated || there ? step_ : 0;
    // Unpacked anew for each row: as many predicates as there are elements do not exist, and ptxas
    // would move them to registers and back.
    std::uint32_t bits = bits_;
    if (kSharing) asm volatile("" : "+r"(bits));
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      float* value = &values_[parity % kSets][i * A::unit];
      // With many elements, zeros that stay would take more registers than there are.
      if (kSharing) *value = 0;
      if (kSharing ? (bits >> i & 1) != 0 : inside_[i])
        load_unit<S, A::unit>(value, from + i * A::unit * step);
    }
    return !kSharing || there;
  }
  // The element that tap j of result c reads.
  __device__ float operator()(int parity, int c, int j) const {
    return values_[parity % kSets][c * A::stride + j + (A::unit == 1 ? 0 : kLeft - A::pad)];
  }

 private:
  static constexpr bool kSharing = A::unit == 1 && A::columns > 1;
  static constexpr int kSets = 2;
  static constexpr int kLeft = round_up(A::pad, A::unit);
  static constexpr int kUnits =
      A::unit == 1 ? (A::columns - 1) * A::stride + kernel_w
                   : (kLeft + 4 + round_up(kernel_w - 1 - A::pad, A::unit)) / A::unit;
  int step_, first_;
  std::uint32_t bits_ = 0;
  bool inside_[kUnits];
  float values_[kSets][kUnits * A::unit];
};

// Goes down `count` rows of the image; `row` is the first, `at` its column 0. `use(r)` is called
// for each that counts. A tile of several columns loads a row while it uses the one before.
template <int count, typename S, int kernel_w, typename A, typename Use>
__device__ inline void walk_rows(TileRow<S, kernel_w, A>& elements, const typename S::Type* at,
                                 int row, RowRange rows, const Window& h, int width,
                                 const typename S::Type* zeros, const Use& use) {
  constexpr bool ahead = A::columns > 1;
  const int step = A::mode == Mode::dilated ? h.dilation : 1;
  bool there = false;
  if (ahead) there = elements.load(0, at, rows.holds(row), zeros);
#pragma unroll
  for (int r = 0; r < count; ++r) {
    bool next = false;
    if (!ahead) {
      there = elements.load(r, at, rows.holds(row), zeros);
    } else if (r + 1 < count) {
      next = elements.load(r + 1, at + step * width, rows.holds(row + step), zeros);
    }
    if (there) use(r);
    there = next;
    row += step;
    at += step * width;
  }
}

}  // namespace dwconv::tile
