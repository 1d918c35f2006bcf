// What the kernels of the Toeplitz family share: units, positions, and the runs of memory that a
// unit takes, one for each image.
#pragma once

#include <utility>

#include "../families/toeplitz.h"
#include "pipeline.cuh"
#include "scalar.cuh"

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
  int channel;   // of the unit
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
  __device__ int bytes_to(int channel) const { return 2 * channel * static_cast<int>(plane); }

  // How planes lie that are made in shared memory, where each image begins at 16 bytes.
  static Strides of_planes(int row, int plane) {
    Strides strides(1, row, 1);
    strides.plane = plane;
    strides.image = 0;
    return strides;
  }
};

// What a unit has of one tensor: rows of neighbouring planes of each image.
struct Runs {
  std::int64_t first;  // element of the first image's run
  int count;           // of elements of an image

  __device__ Runs(const Strides& layout, std::int64_t first_plane, int planes, RowRange rows)
      : first(first_plane * layout.plane + static_cast<std::int64_t>(rows.first) * layout.row),
        count(planes * rows.count() * layout.row) {}
  // Of planes that are made in shared memory.
  __device__ Runs() : first(0), count(0) {}

  // The bytes that come along before a run that begins `elements` after the first, of which only
  // the last bits count.
  __device__ int lead(int elements) const { return ((static_cast<int>(first) + elements) & 7) * 2; }
  // Moves places within the unit's runs to where they are when the first run is at `at` in shared
  // memory; each is in a run that begins `elements` after the first.
  template <int count>
  __device__ void move(int (&places)[count], int at, const std::uint8_t (&elements)[count]) const {
#pragma unroll
    for (int i = 0; i < count; ++i)
      places[i] += at + lead(elements[i]);
  }
};

// Geometry as kernels want it. A unit's image is a block of images.
struct Grid : UnitGrid<Geometry> {
  Strides source, result;
  SmallDivisor strips, batches, walks, row_classes;
  SmallDivisor row_step;  // rows of the source from one step to the next
  int tasks;              // of a unit

  Grid(const Geometry& geometry, const Problem& problem, const Plan& plan)
      : UnitGrid(geometry, problem, plan),
        source(g.h.source, g.w.source, channels),
        result(problem.pass == Pass::backward_input ? problem.h.input : problem.h.output(),
               problem.pass == Pass::backward_input ? problem.w.input : problem.w.output(),
               channels),
        strips(g.strips),
        batches(g.batches),
        walks(g.walks),
        row_classes(g.row_classes),
        row_step(g.access.mode == Mode::strided ? 2 : g.h.dilation),
        tasks(g.tasks()) {
    if (problem.layout == Layout::nchw) return;
    source = Strides::of_planes(g.w.source, g.source_plane);
    result = Strides::of_planes(round_up(result.row, 2), g.result_plane);
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
