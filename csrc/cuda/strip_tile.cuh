// What the kernels of the strip family share: where a thread's tiles lie, and what a tile reads of
// a row.
#pragma once

#include <algorithm>

#include "../families/strip.h"
#include "batches.cuh"
#include "channels.cuh"
#include "divide.cuh"

namespace dwconv::strip {

// Geometry as kernels want it.
struct Grid {
  Geometry g;
  std::int64_t source_pitch, result_pitch;  // elements of a row
  int channels;
  std::int64_t slices;  // blocks that share the tiles of a group of channels
  Divisor vectors, slots, groups;
  Divisor strips, column_classes, row_tiles, row_classes;
  SmallDivisor taps;

  Grid(const Geometry& geometry, const Problem& problem, const Plan& plan)
      : g(geometry),
        source_pitch(problem.channels * g.w.source),
        result_pitch(problem.channels * g.w.result),
        channels(static_cast<int>(problem.channels)),
        slices(plan.blocks / g.groups),
        vectors(g.vectors),
        slots(g.slots),
        groups(g.groups),
        strips(g.strips),
        column_classes(g.column_classes),
        row_tiles(g.row_tiles),
        row_classes(g.row_classes),
        taps(static_cast<int>(problem.taps())) {}
};

// The share of a thread: its channels, and every slots-th of a run of tiles. Those of the same
// slot are neighbours in memory.
struct Share {
  int group, slice;
  int vector;             // which channels, of those of the group
  int role;               // which filter rows, of a weight gradient
  int channel;            // the first one
  int first, last, step;  // tiles
  bool works;

  __device__ Share(const Grid& grid, int per_vector) {
    const Geometry& g = grid.g;
    slice = static_cast<int>(blockIdx.x);
    group = grid.groups.short_remainder(slice);
    role = static_cast<int>(threadIdx.x);
    vector = grid.vectors.short_remainder(role);
    const int slot = grid.slots.short_remainder(role);
    channel = group * g.width + vector * per_vector;
    works = role < g.roles && channel < grid.channels;
    first = slice * g.slots + slot;
    last = static_cast<int>(g.items);
    step = static_cast<int>(grid.slices) * g.slots;
  }
};

// A tile: its image, and where its first result lies. Neighbours are side by side, and then one
// below the other, so that what they share is in the L1.
struct Item {
  int image, row, column;

  __device__ Item(const Grid& grid, int index) {
    const Geometry& g = grid.g;
    const int column_class = grid.column_classes.short_remainder(index);
    const int strip = grid.strips.short_remainder(index);
    column = column_class + strip * g.shape.columns * g.column_classes;
    const int tile = grid.row_tiles.short_remainder(index);
    row = grid.row_classes.short_remainder(index) + tile * g.shape.rows * g.row_classes;
    image = index;
  }
};

// What a tile reads of a row: `count` elements, those outside the image zero and never loaded. Rows
// take turns in two to four sets of registers, as many as `most_registers` hold, so that some rows
// are on their way while one is used.
template <typename S, int channels, int count, int most_registers>
class Row {
  using Type = typename S::Type;
  using V = Vector<S, channels>;
  static constexpr int kRegisters = count * ceil_div(sizeof(typename V::Word), 4);

 public:
  static constexpr int kSets = std::clamp(most_registers / kRegisters, 2, 4);
  using Values = float[count][channels];

  // `first` is the first element's column, `step` from one to the next; `pixel` the elements of one
  // column.
  __device__ Row(int first, int step, int width, int pixel)
      : step_bytes_(static_cast<std::uint32_t>(step * pixel) * sizeof(Type)) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const bool inside = static_cast<unsigned>(first + i * step) < static_cast<unsigned>(width);
      inside_ |= static_cast<std::uint32_t>(inside) << i;
#pragma unroll
      for (auto& words : words_)
        words[i] = typename V::Word{};
    }
  }

  // Loads a row, whose first element is at `from`; of one that is not there, nothing.
  __device__ bool load(int row, const Type* from, bool there) {
    const std::uint32_t inside = there ? inside_ : 0;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const auto* at = reinterpret_cast<const Type*>(reinterpret_cast<const char*>(from) +
                                                     std::uint64_t{step_bytes_} * i);
      if (inside >> i & 1) words_[row % kSets][i] = V::load(at);
    }
    return there;
  }
  __device__ void widen(int row, Values& values) const {
#pragma unroll
    for (int i = 0; i < count; ++i)
      V::widen(values[i], words_[row % kSets][i]);
  }

 private:
  std::uint32_t step_bytes_;
  std::uint32_t inside_ = 0;
  typename V::Word words_[kSets][count];
};

// Goes down `rows` rows of an image, `step` apart; `row` is the first, `at` its first element.
// `use(r, values)` is called for each that is there.
template <int rows, typename Row, typename Type, typename Use>
__device__ inline void walk_rows(Row& elements, const Type* at, int row, int step, int height,
                                 std::int64_t pitch, const Use& use) {
  const auto holds = [&](int index) {
    return static_cast<unsigned>(index) < static_cast<unsigned>(height);
  };
  constexpr int ahead = std::min(Row::kSets - 1, rows);
  bool there[rows];
  const auto load = [&](int r) {
    there[r] = elements.load(r, at, holds(row));
    row += step;
    at += step * pitch;
  };
#pragma unroll
  for (int r = 0; r < ahead; ++r)
    load(r);
#pragma unroll
  for (int r = 0; r < rows; ++r) {
    if (r + ahead < rows) load(r + ahead);
    if (there[r]) {
      typename Row::Values values;
      elements.widen(r, values);
      use(r, values);
    }
  }
}

// Runs `launch.template operator()<kernel_w>()` for a filter width that comes at run time.
template <int kernel_w = kMaxKernel, typename Launch>
void for_width(int width, const Launch& launch) {
  if (width == kernel_w) {
    launch.template operator()<kernel_w>();
  } else if constexpr (kernel_w > 1) {
    for_width<kernel_w - 1>(width, launch);
  }
}

}  // namespace dwconv::strip
