// What kernels of families that work on rows brought by the copy engine share: units of work, and
// the rows of them that come into shared memory while others are used.
#pragma once

#include "../families/rows.h"
#include "divide.cuh"
#include "tensor_map.cuh"

namespace dwconv::rows {

// Geometry as kernels want it.
struct Grid {
  Geometry g;
  std::int64_t result_row, result_image;  // elements
  int batch, channels;
  std::int64_t result_step;    // elements from a row of results to the next of its class
  std::uint32_t column_bytes;  // and bytes from a column to the next
  int slices;                  // blocks that take the units of a group of channels in turn
  Use use;                     // of what is read
  Divisor groups, steps, bands, column_tiles, row_classes, column_classes, vectors, strips;
  Divisor row_step;

  Grid(const Geometry& geometry, const Problem& problem, const Plan& plan)
      : g(geometry),
        result_row(problem.channels * g.w.result),
        result_image(result_row * g.h.result),
        batch(static_cast<int>(problem.batch)),
        channels(static_cast<int>(problem.channels)),
        result_step(result_row * g.h.dilation),
        column_bytes(
            static_cast<std::uint32_t>(problem.channels * g.w.dilation * size_of(problem.dtype))),
        slices(static_cast<int>(plan.blocks / g.groups)),
        use(use_of(plan)),
        groups(g.groups),
        steps(g.steps),
        bands(g.bands),
        column_tiles(g.column_tiles),
        row_classes(g.row_classes),
        column_classes(g.column_classes),
        vectors(g.vectors),
        strips(g.strips),
        row_step(g.h.dilation) {}
};

// A band of rows of some columns of some images, of one class of both.
struct Unit {
  int image;
  int row, column;              // the first result, among those of its class
  int row_class, column_class;  // result r of a class is r * dilation + class

  __device__ Unit(const Grid& grid, int index) {
    const Geometry& g = grid.g;
    row = grid.bands.short_remainder(index) * g.band;
    column = grid.column_tiles.short_remainder(index) * g.strips * g.shape.columns;
    column_class = grid.column_classes.short_remainder(index);
    row_class = grid.row_classes.short_remainder(index);
    image = index * g.images;
  }

  // Of step 0, in the source; others are a dilation apart.
  __device__ int source_row(const Window& h) const {
    return (row_class + row * h.dilation) * h.stride - h.pad;
  }
  __device__ int source_column(const Window& w) const {
    return (column_class + column * w.dilation) * w.stride - w.pad;
  }
  // Rows and columns of results that the unit's first one begins, as far as the image goes.
  __device__ int rows(const Grid& grid) const {
    return grid.row_step.short_quotient(grid.g.h.result - 1 - row_class + grid.g.h.dilation) - row;
  }
};

// Of a unit's steps, those whose row is in the image: from `first` up to `last`.
struct Inside {
  int first, last;

  __device__ Inside(const Grid& grid, const Unit& unit) {
    const Window& h = grid.g.h;
    const int row = unit.source_row(h);
    first = row < 0 ? grid.row_step.short_quotient(-row + h.dilation - 1) : 0;
    last = row < h.source ? grid.row_step.short_quotient(h.source - 1 - row + h.dilation) : 0;
  }
};

// The unit of a step of a block, which becomes that within the unit.
__device__ inline Unit unit_of(const Grid& grid, int slice, int& step) {
  int index = step;
  step = grid.steps.short_remainder(index);
  return Unit(grid, slice + index * grid.slices);
}

// Units of a block.
__device__ inline int units_of(const Grid& grid, int slice) {
  return static_cast<int>((grid.g.units - slice + grid.slices - 1) / grid.slices);
}

#if __CUDA_ARCH__ >= 900
// The rows of a block's units as they come. `load(step, stage, barrier)` tells the barrier what to
// expect, and starts the copies. Warps pass over them at their own pace, but for a few rows.
// With `turns`, warps bring rows in turn, for it takes a while; it takes registers as well.
template <int stages, typename Load, int alignment = kBoxAlignment, bool turns = false>
class Ring {
 public:
  // Begins when nobody uses the memory any more.
  __device__ Ring(char* shared, int stage_bytes, int steps, const Load& load)
      : load_(load),
        full_(shared_address(shared)),
        stage_bytes_(stage_bytes),
        last_(steps),
        turn_(static_cast<int>(threadIdx.x) / 32) {
    publish();
    if (threadIdx.x == 0) {
      for (int i = 0; i < stages; ++i) {
        init_barrier(full(i), 1);
        init_barrier(empty(i), static_cast<int>(blockDim.x) / 32);
      }
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x == 0) {
#pragma unroll 1
      for (int i = 0; i < stages; ++i)
        start(i);
    }
  }

  // Whether the row of this step is there.
  __device__ bool test() const { return test_barrier(full(slot(step_)), parity(step_)); }
  __device__ std::uint32_t wait(bool tested) const { return tested ? stage(slot(step_)) : wait(); }
  // The row of this step, when it is there.
  __device__ std::uint32_t wait() const {
    wait_barrier(full(slot(step_)), parity(step_));
    return stage(slot(step_));
  }
  // Has read it, or has no use for it, and goes on to the next.
  __device__ void leave() {
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive_at(empty(slot(step_)));
    const int used = step_ - lag_of(stages);
    ++step_;
    bool brings = threadIdx.x == 0;
    if constexpr (turns) {
      brings = turn_ == 0 && threadIdx.x % 32 == 0;
      if (turn_ == 0) turn_ = static_cast<int>(blockDim.x) / 32;
      --turn_;
    }
    // The place of that row is filled anew when all warps have read it.
    if (brings && used >= 0 && used + stages < last_) {
      wait_barrier(empty(slot(used)), parity(used));
      start(used + stages);
    }
  }

  // Goes on from row i to another, without a use for those between.
  __device__ void pass(int& i, int until) {
#pragma unroll 1
    for (; i < until; ++i) {
      wait();
      leave();
    }
  }

 private:
  __device__ int slot(int step) const { return static_cast<unsigned>(step) % stages; }
  __device__ int parity(int step) const { return static_cast<unsigned>(step) / stages % 2; }
  __device__ std::uint32_t full(int slot) const { return full_ + 8 * slot; }
  __device__ std::uint32_t empty(int slot) const { return full_ + 8 * (stages + slot); }
  __device__ std::uint32_t stage(int slot) const {
    return full_ + control_bytes(stages, alignment) + slot * stage_bytes_;
  }
  __device__ void start(int step) const {
    if (step < last_) load_(step, stage(slot(step)), full(slot(step)));
  }

  Load load_;
  std::uint32_t full_;
  int stage_bytes_, last_;
  int turn_;  // steps until it is this warp's to bring a row
  int step_ = 0;
};
#endif

}  // namespace dwconv::rows
