// What the kernels of the tile family share: their walk over the units and over the tiles of one
// unit, and what a tile reads of a row.
#pragma once

#include "../families/tile.h"
#include "bulk.cuh"
#include "divide.cuh"
#include "scalar.cuh"
#include "units.cuh"

namespace dwconv::tile {

// Geometry as kernels want it.
struct Grid {
  Geometry g;
  std::int64_t channels;  // of the problem
  int batch;
  int stages;
  Dealer dealer;
  SmallDivisor strips, row_tiles, row_classes, plane_items, unit_channels;

  Grid(const Geometry& geometry, const Problem& problem, const Plan& plan)
      : g(geometry),
        channels(problem.channels),
        batch(static_cast<int>(problem.batch)),
        stages(plan.tiling.stages),
        dealer(geometry.units, plan.blocks, geometry.image_blocks, geometry.bands,
               problem.pass == Pass::backward_weight && plan.slices == 1),
        strips(geometry.strips),
        row_tiles(geometry.row_tiles),
        row_classes(geometry.row_classes),
        plane_items(geometry.plane_items),
        unit_channels(geometry.channels) {}

  __device__ void advance(Unit& unit) const { unit.advance(g.image_blocks, g.bands); }
  __device__ std::int64_t first_channel(const Unit& unit) const {
    return static_cast<std::int64_t>(unit.group) * g.channels;
  }
  // The last group may have fewer channels, and the last block of images fewer of them.
  __device__ int channels_of(const Unit& unit) const {
    const std::int64_t left = channels - first_channel(unit);
    return left < g.channels ? static_cast<int>(left) : g.channels;
  }
  __device__ int planes(const Unit& unit) const {
    return channels_of(unit) * min(g.images, batch - unit.image * g.images);
  }
  __device__ std::int64_t first_plane(const Unit& unit) const {
    return static_cast<std::int64_t>(unit.image) * g.images * channels + first_channel(unit);
  }
  // The channel of a unit's plane, among those of the unit.
  __device__ int channel(int plane) const { return unit_channels.remainder(plane); }
  // The last band may have fewer rows.
  __device__ int rows(const Unit& unit) const {
    return min(g.rows, g.h.result - unit.band * g.rows);
  }
  // Those of the source that lie inside the image.
  __device__ RowRange source_rows(const Unit& unit) const {
    if (g.whole()) return {0, g.h.source};
    const int first = unit.band * g.rows * g.h.stride - g.h.pad;
    const int last = min(first + g.h.reach(rows(unit)), g.h.source);
    return {min(max(first, 0), last), last};  // a last band may need none
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

// A block's walk over its run of units. While one is used, the next ones are on their way into the
// other stages of shared memory. `load(loader, slot, stage, unit)` starts loading one, of `runs`.
template <typename Load>
class Pipeline {
 public:
  __device__ Pipeline(const Grid& grid, char* shared, int runs, const Load& load)
      : grid_(grid),
        shared_(shared),
        load_(load),
        loader_(reinterpret_cast<std::uint64_t*>(shared + grid.g.barriers_at), grid.stages, runs) {
    const std::int64_t begin = grid.dealer.begin(blockIdx.x);
    // Never 2^31 of them: they would not fit any memory.
    left_ = static_cast<int>(grid.dealer.begin(blockIdx.x + 1) - begin);
    next_ = unit_ = grid.dealer.unit(begin);
    __syncthreads();
#pragma unroll 1
    for (int i = 0; i < grid.stages - 1; ++i)
      start_next(i, i);
  }

  __device__ bool more() const { return left_ > 0; }
  __device__ const Unit& unit() const { return unit_; }

  // The unit's stage, once it has arrived. All threads of the block have then left the unit before,
  // and its stage is filled anew.
  __device__ const char* wait() {
    const int ahead = grid_.stages - 1;
    loader_.wait(slot_, ahead - 1);
    __syncthreads();
    start_next(ahead, slot_ == 0 ? ahead : slot_ - 1);
    return stage(slot_);
  }
  __device__ void advance() {
    --left_;
    grid_.advance(unit_);
    if (++slot_ == grid_.stages) slot_ = 0;
  }

 private:
  __device__ char* stage(int slot) const { return shared_ + slot * grid_.g.stage_bytes; }
  // The next unit lies `ahead` units after the present one.
  __device__ void start_next(int ahead, int slot) {
    if (ahead >= left_) return loader_.skip();
    load_(loader_, slot, stage(slot), next_);
    grid_.advance(next_);
  }

  const Grid& grid_;
  char* shared_;
  const Load& load_;
  RunLoader loader_;
  Unit unit_, next_;
  int left_;  // units, the present one included
  int slot_ = 0;
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

  // `row` is column 0 of the row.
  __device__ void load(int parity, const typename S::Type* row) {
#pragma unroll
    for (int i = 0; i < kUnits; ++i)
      if (inside_[i])
        load_unit<S, A::unit>(&values_[parity % kSets][i * A::unit],
                              row + first_ + i * A::unit * step_);
  }
  // The same of zeros where the row is not there: without a branch, loads of the rows to come are
  // under way while others are used.
  __device__ void load_or_zeros(int parity, const typename S::Type* row, bool there,
                                const typename S::Type* zeros) {
    static_assert(kUnits * A::unit * sizeof(typename S::Type) <= kZeroBytes);
    load(parity, there ? row : zeros - first_);
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
