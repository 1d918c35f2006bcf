// What the kernels of the Toeplitz family share: units, positions, and the runs of memory that a
// unit takes, one for each image.
#pragma once

#include <utility>

#include "../families/toeplitz.h"
#include "bulk.cuh"
#include "divide.cuh"
#include "scalar.cuh"
#include "units.cuh"

namespace dwconv::toeplitz {

// The same for all lanes, and known to be.
__device__ inline int warp_index() {
  return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
}

// Sixteen at a time, a warp takes a channel's positions: see families/toeplitz.h.
struct Position {
  int image;
  int strip;
};

// What a warp does of a unit at a time.
struct Task {
  int plane;
  int row;       // of the first result, in the unit
  int position;  // the first of 16
};

// How a tensor lies in global memory.
struct Strides {
  int row;             // elements of a row
  std::int64_t plane;  // of a plane
  std::int64_t image;  // of an image

  Strides(std::int64_t rows, std::int64_t columns, std::int64_t channels)
      : row(static_cast<int>(columns)), plane(rows * columns), image(channels * plane) {}
};

// What a unit has of one tensor: rows of neighbouring planes of each image.
struct Runs {
  std::int64_t first;  // element of the first image's run
  int count;           // of elements of an image

  __device__ Runs(const Strides& layout, std::int64_t first_plane, int planes, RowRange rows)
      : first(first_plane * layout.plane + static_cast<std::int64_t>(rows.first) * layout.row),
        count(planes * rows.count() * layout.row) {}

  // The bytes that come along before a run that begins `elements` after the first.
  __device__ int lead(int elements) const { return ((static_cast<int>(first) + elements) & 7) * 2; }
};

// Geometry as kernels want it. A unit's image is a block of images.
struct Grid {
  Geometry g;
  std::int64_t channels;
  int batch;
  int stages;
  Strides source, result;
  Dealer dealer;
  SmallDivisor strips, batches, walks, row_classes;
  SmallDivisor row_step;  // rows of the source from one step to the next

  Grid(const Geometry& geometry, const Problem& problem, const Plan& plan)
      : g(geometry),
        channels(problem.channels),
        batch(static_cast<int>(problem.batch)),
        stages(plan.tiling.stages),
        source(g.h.source, g.w.source, channels),
        result(problem.pass == Pass::backward_input ? problem.h.input : problem.h.output(),
               problem.pass == Pass::backward_input ? problem.w.input : problem.w.output(),
               channels),
        dealer(g.units, plan.blocks, g.image_blocks, g.bands,
               problem.pass == Pass::backward_weight && plan.slices == 1),
        strips(g.strips),
        batches(g.batches),
        walks(g.walks),
        row_classes(g.row_classes),
        row_step(g.access.mode == Mode::strided ? 2 : g.h.dilation) {}

  __device__ void advance(Unit& unit) const { unit.advance(g.image_blocks, g.bands); }

  // The last group may have fewer planes, the last block fewer images, the last band fewer rows.
  __device__ int planes(const Unit& unit) const {
    const std::int64_t left = channels - static_cast<std::int64_t>(unit.group) * g.planes;
    return left < g.planes ? static_cast<int>(left) : g.planes;
  }
  __device__ int images(const Unit& unit) const {
    return min(g.images, batch - unit.image * g.images);
  }
  __device__ RowRange result_rows(const Unit& unit) const {
    const int first = unit.band * g.rows;
    return {first, min(first + g.rows, g.h.result)};
  }
  __device__ RowRange source_rows(const Unit& unit) const {
    if (g.whole()) return {0, g.h.source};
    const RowRange rows = result_rows(unit);
    const int first = rows.first * g.h.stride - g.h.pad;
    const int last = min(first + g.h.reach(rows.count()), g.h.source);
    return {min(max(first, 0), last), last};  // a last band may need none
  }
  __device__ std::int64_t first_plane(const Unit& unit) const {
    return static_cast<std::int64_t>(unit.image) * g.images * channels +
           static_cast<std::int64_t>(unit.group) * g.planes;
  }
  __device__ Position position(int index) const {
    const int strip = strips.remainder(index);
    return {index, strip};
  }
  __device__ Task task(int index) const {
    const int batch = batches.remainder(index);
    const int walk = walks.remainder(index);
    const int row_class = row_classes.remainder(index);
    return {index, row_class + walk * g.walk_rows * g.row_classes, batch * kPositions};
  }
};

// The steps of a task. Result q of the class is complete after step q + ring - 1; only the steps
// that meet the source are taken, from `first` to `last` - 1.
struct Steps {
  int row;  // of the source in step 0, counted from the first loaded
  int first, last;
  int results;  // of the task

  template <typename A>
  __device__ static Steps of(const Grid& grid, const Task& task, int top, int source_rows,
                             int rows) {
    Steps s;
    const SmallDivisor& step = grid.row_step;
    s.row = top + task.row * grid.g.h.stride;
    s.results = rows > task.row ? grid.row_classes.quotient(rows - task.row - 1) + 1 : 0;
    s.results = min(s.results, grid.g.walk_rows);
    s.first = s.row + A::source_rows <= 0 ? step.quotient(-s.row - A::source_rows) + 1 : 0;
    s.last = source_rows > s.row ? step.quotient(source_rows - s.row - 1) + 1 : 0;
    s.last = min(s.last, s.results + A::ring - 1);
    return s;
  }
};

}  // namespace dwconv::toeplitz
