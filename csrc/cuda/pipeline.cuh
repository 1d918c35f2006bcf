// A block's walk over its units of work: where they lie, and how they come into shared memory.
#pragma once

#include "../families/unit.h"
#include "bulk.cuh"
#include "units.cuh"

namespace dwconv {

// What all geometries of units have in common, as kernels want it: `channels` of each of `images`
// (a block of them is a unit's image), or a band of rows.
template <typename Geometry>
struct UnitGrid {
  Geometry g;
  int channels;  // of the problem
  int batch;
  int stages;
  int workers;  // threads that compute
  Dealer dealer;

  UnitGrid(const Geometry& geometry, const Problem& problem, const Plan& plan)
      : g(geometry),
        channels(static_cast<int>(problem.channels)),
        batch(static_cast<int>(problem.batch)),
        stages(plan.tiling.stages),
        workers(plan.tiling.threads),
        dealer(plan, g.units, g.groups, g.image_blocks, g.bands) {}

  __device__ std::int64_t first_channel(const Unit& unit) const { return unit.group * g.channels; }
  __device__ std::int64_t first_plane(const Unit& unit) const {
    return static_cast<std::int64_t>(unit.image) * g.images * channels + first_channel(unit);
  }
  // The last group may have fewer channels, the last block fewer images, the last band fewer rows.
  __device__ int channels_of(const Unit& unit) const {
    return min(g.channels, channels - unit.group * g.channels);
  }
  __device__ int images_of(const Unit& unit) const {
    return min(g.images, batch - unit.image * g.images);
  }
  __device__ RowRange result_rows(const Unit& unit) const {
    const int first = unit.band * g.rows;
    return {first, min(first + g.rows, g.h.result)};
  }
  // Those of the source that lie inside the image.
  __device__ RowRange source_rows(const Unit& unit) const {
    if (g.whole()) return {0, g.h.source};
    const RowRange rows = result_rows(unit);
    const int first = rows.first * g.h.stride - g.h.pad;
    const int last = min(first + g.h.reach(rows.count()), g.h.source);
    return {min(max(first, 0), last), last};  // a last band may need none
  }
};

// A block's walk over its units. While one is used, the next ones are on their way into the
// other stages of shared memory. `load(loader, slot, stage, unit)` starts loading one, of `runs`.
template <typename Grid, typename Load>
class Pipeline {
 public:
  __device__ Pipeline(const Grid& grid, char* shared, int runs, const Load& load)
      : grid_(grid),
        shared_(shared),
        load_(load),
        loader_(reinterpret_cast<std::uint64_t*>(shared + grid.g.barriers_at), grid.stages, runs) {
    left_ = grid.dealer.count(blockIdx.x);
    unit_ = grid.dealer.first(blockIdx.x);
    __syncthreads();
#pragma unroll 1
    for (int i = 0; i < grid.stages - 1; ++i)
      start(i, i);
  }

  __device__ bool more() const { return left_ > 0; }
  __device__ const Unit& unit() const { return unit_; }

  // Where the unit's results go in shared memory. If there are two places, they take turns: while
  // results leave, the next ones are made.
  __device__ int results_at() const {
    return grid_.g.results_at + (left_ & 1) * grid_.g.result_bytes;
  }
  // Waits until that place is free; a barrier must follow.
  __device__ void wait_for_place() const { dwconv::wait_for_place(grid_.g.result_bytes); }

  // The unit's stage, once it has arrived. All threads of the block have then left the unit before,
  // and its stage is filled anew.
  __device__ const char* wait() {
    const int ahead = grid_.stages - 1;
    loader_.wait(slot_, ahead - 1);
    __syncthreads();
    start(ahead, slot_ == 0 ? ahead : slot_ - 1);
    return stage(slot_);
  }
  __device__ void advance() {
    --left_;
    grid_.dealer.advance(unit_);
    if (++slot_ == grid_.stages) slot_ = 0;
  }

 private:
  __device__ char* stage(int slot) const {
    return shared_ + grid_.g.stages_at + slot * grid_.g.stage_bytes;
  }
  // Loads the unit that comes `ahead` units after the present one.
  __device__ void start(int ahead, int slot) {
    if (ahead >= left_) return loader_.skip();
    if (!loader_.loads()) return;
    Unit unit = unit_;
    grid_.dealer.advance(unit, ahead);
    load_(loader_, slot, stage(slot), unit);
  }

  const Grid& grid_;
  char* shared_;
  const Load& load_;
  RunLoader loader_;
  Unit unit_;
  int left_;  // units, the present one included
  int slot_ = 0;
};

}  // namespace dwconv
