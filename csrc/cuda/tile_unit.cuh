// What the kernels of the tile family share: their walk over the units and over the tiles of one
// unit, and what a tile reads of a row.
#pragma once

#include "../families/tile.h"
#include "pipeline.cuh"
#include "scalar.cuh"

namespace dwconv::tile {

// Geometry as kernels want it.
struct Grid : UnitGrid<Geometry> {
  int zero = 0;  // see TileRow
  // Either of a unit's planes or of the tiles of one there are `inner` in a row, and `neighbours`
  // tiles that follow each other are of one plane.
  SmallDivisor strips, column_classes, row_classes, inner, neighbours, unit_channels;

  Grid(const Geometry& geometry, const Problem& problem, const Plan& plan)
      : UnitGrid(geometry, problem, plan),
        strips(g.strips),
        column_classes(g.column_classes),
        row_classes(g.row_classes),
        inner(g.by_level ? g.round_planes : g.row_tiles),
        neighbours(g.by_level ? g.level_items : g.plane_items),
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

// A tile of a unit. The last planes may be missing, and with a dilation the last columns beyond the
// image.
struct Item {
  int plane;
  int row;  // of its first result, in the band
  int column;
};

// That tiles never go level by level is told to the compiler only where it was measured to matter.
template <bool may_go_by_level = true>
__device__ inline Item item_at(const Grid& grid, int index) {
  Item item;
  int strip = grid.strips.remainder(index);
  const int column_class = grid.column_classes.remainder(strip);
  item.column = column_class + strip * grid.g.access.columns * grid.g.column_classes;
  const int row_class = grid.row_classes.remainder(index);
  const int first = grid.inner.remainder(index);
  item.plane = may_go_by_level && grid.g.by_level ? first : index;
  const int tile = may_go_by_level && grid.g.by_level ? index : first;
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
  using Type = typename S::Type;

 public:
  // `zero` is one that the compiler does not know.
  __device__ TileRow(int column, const Window& w, int zero)
      : step_bytes_(w.dilation * kBytes),
        first_(A::unit == 1 ? column * w.stride - w.pad : column - kLeft),
        zero_(zero) {
    const int step = A::mode == Mode::dilated ? w.dilation : A::unit;
    // Not known to be elements: otherwise each address would take two instructions, not one.
    if (A::mode == Mode::dilated) asm("" : "+r"(step_bytes_));
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      const bool inside =
          static_cast<unsigned>(first_ + i * step) < static_cast<unsigned>(w.source);
      if (kSharing) {
        bits_ |= static_cast<std::uint32_t>(inside) << bit(i);
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

  // Loads a row, `row` being its column 0, and says whether it counts. `zeros` are in shared
  // memory, as many as a tile reads of a row.
  __device__ bool load(int parity, const Type* row, bool there, const Type* zeros) {
    constexpr bool skips = skips_loads(A::value);
    static_assert(skips || kUnits * A::unit * kBytes <= kZeroBytes);
    if (skips && !there) return false;
    const Type* from = skips || there ? row + first_ : zeros;
    // As many predicates as there are elements do not exist. Of bits that may have changed ptxas
    // makes them anew, in three instructions; of others it keeps some all along, and moves them to
    // registers and back for each row: 55 instructions a row of 10x10 float32, and 34 like this.
    if (kSharing) bits_ += zero_;
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      float* value = &values_[parity % kSets][i * A::unit];
      if (!kZerosStay) *value = 0;
      if (kSharing ? (bits_ >> bit(i) & 1) != 0 : inside_[i]) load_unit<S, A::unit>(value, from);
      from = A::mode != Mode::dilated
                 ? from + A::unit
                 : reinterpret_cast<const Type*>(reinterpret_cast<const char*>(from) + step_bytes_);
    }
    return !skips_rows(A::value) || there;
  }
  // The element that tap j of result c reads.
  __device__ float operator()(int parity, int c, int j) const {
    return values_[parity % kSets][c * A::stride + j + (A::unit == 1 ? 0 : kLeft - A::pad)];
  }

 private:
  static constexpr bool kSharing = A::unit == 1 && A::columns > 1;
  // With more elements, zeros that stay would take more registers than there are.
  static constexpr bool kZerosStay = !(kSharing && A::mode == Mode::dense && kernel_w == 11);
  static constexpr int kBytes = sizeof(Type);
  static constexpr int kSets = 2;
  static constexpr int kLeft = round_up(A::pad, A::unit);
  static constexpr int kUnits =
      A::unit == 1 ? (A::columns - 1) * A::stride + kernel_w
                   : (kLeft + 4 + round_up(kernel_w - 1 - A::pad, A::unit)) / A::unit;
  // One instruction makes predicates 1 to 6 of the bits 1 to 6 of a byte.
  static constexpr int bit(int i) { return i / 6 * 8 + 1 + i % 6; }
  static_assert(!kSharing || bit(kUnits - 1) < 32);

  int step_bytes_, first_;
  int zero_;
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
  constexpr bool ahead = !skips_loads(A::value);
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
