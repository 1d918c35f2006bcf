// A block's walk over units whose results leave again: all of its threads wait for a unit, compute
// it and send its results. On sm_90 a warp more may do all but compute.
#pragma once

#include <type_traits>
#include <utility>

#include "claims.cuh"
#include "pipeline.cuh"

namespace dwconv {

// Of a unit, source(unit) is the run that is loaded and result(unit) the one that leaves, without
// their places in shared memory; filters(unit, to, thread, threads) stores the filters at `to`, by
// so many threads. Kernels go
//   if (walk.serves()) return walk.serve();
//   while (walk.next()) { compute by walk.workers() threads; walk.leave(); }
#if __CUDA_ARCH__ >= 900
// A block of more threads than its tiling has is served by its last warp: that claims units, loads
// them with their filters and sends results off. Those that compute then meet no barrier of the
// block, and need not be at the same unit.
template <typename Grid, typename Source, typename Result, typename Filters>
class Served {
 public:
  __device__ Served(const Grid& grid, const Claims& claims, Use use, char* shared,
                    const Source& source, const Result& result, const Filters& filters)
      : grid_(grid),
        claims_(claims),
        use_(use),
        shared_(shared),
        source_(source),
        result_(result),
        filters_(filters) {
    if (threadIdx.x == 0) {
      for (int i = 0; i < grid.stages; ++i)
        init_barrier(full(i), is_served() ? 1 + kLanes : 1);
      for (int i = 0; i < 2; ++i)
        init_barrier(free_place(i), kLanes);
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (is_served()) return;
    unit_ = grid.dealer.first(blockIdx.x);
    left_ = grid.dealer.count(blockIdx.x);
#pragma unroll 1
    for (int i = 0; i < grid.stages - 1; ++i)
      start(i, i);
  }

  // Threads that compute. Others call `serve`, and are done.
  __device__ int workers() const { return grid_.workers; }
  __device__ bool serves() const { return static_cast<int>(threadIdx.x) >= workers(); }

  __device__ void serve() {
    unit_ = grid_.dealer.first(blockIdx.x);  // the next to be loaded
    left_ = grid_.dealer.count(blockIdx.x);
    std::uint32_t number = Claims::kFirst;
    // All stages are filled, and then each anew when its results are ready to leave. What has to
    // be known for that is worked out before.
#pragma unroll 1
    for (int filled = 0;; ++filled) {
      const bool again = filled >= grid_.stages;
      const Unit before = again ? units()[slot_] : Unit{-1, 0, 0};
      if (again && before.group < 0) return;
      auto out = result_(before);
      out.shared = result();
      const Unit next = take(number);
      auto in = source_(next);
      in.shared = stage();
      if (again) {
        wait_for_warps(done(), blockDim.x);
        send_run(out, lane());
        commit_sent();
      }
      if (lane() == 0) {
        units()[slot_] = next;
        if (next.group < 0) {
          arrive_at(full(slot_));
        } else {
          load_run(in, full(slot_), use_);
        }
      }
      // All lanes arrive, for each of them has read or written.
      if (again) {
        wait_until_sent<0>();
        __syncwarp();
        arrive_at(free_place(place()));
      }
      // The filters, unless they are those that the stage had before.
      if (next.group >= 0 && next.group != before.group) filters_(next, filters(), lane(), kLanes);
      arrive_at(full(slot_));
      if (again) {
        advance();
      } else if (++slot_ == grid_.stages) {
        slot_ = 0;
      }
    }
  }

  // Waits for the next unit, and says whether there is one.
  __device__ bool next() {
    if (is_served()) {
      wait_barrier(full(slot_), turn_ & kStageTurn);
      const Unit here = units()[slot_];
      // The compiler does not know that it is the same for all.
      unit_ = {__shfl_sync(0xffffffffu, here.group, 0), __shfl_sync(0xffffffffu, here.image, 0),
               __shfl_sync(0xffffffffu, here.band, 0)};
      if (unit_.group < 0) return false;
      wait_barrier(free_place(place()), (turn_ & kPlaceTurn) == 0);
      return true;
    }
    if (left_ <= 0) {
      wait_until_sent<0>();
      return false;
    }
    if (unit_.group != filters_of_) {
      filters_of_ = unit_.group;
      filters_(unit_, filters(), static_cast<int>(threadIdx.x), workers());
    }
    wait_for_place(grid_.g.result_bytes);
    wait_barrier(full(slot_), turn_ & kStageTurn);
    __syncthreads();
    const int ahead = grid_.stages - 1;
    start(ahead, slot_ == 0 ? ahead : slot_ - 1);
    return true;
  }
  // The unit's results are where they leave from; nothing else of it is needed any more.
  __device__ void leave() {
    publish();
    if (is_served()) {
      __syncwarp();
      tell_warps(done(), blockDim.x);
    } else {
      __syncthreads();
      auto run = result_(unit_);
      run.shared = result();
      if (threadIdx.x < kLanes) send_run(run, lane());
      commit_sent();
      --left_;
      grid_.dealer.advance(unit_);
    }
    advance();
  }

  __device__ const Unit& unit() const { return unit_; }
  __device__ char* stage() const { return stage_of(slot_); }
  __device__ float* filters() const {
    const int slot = is_served() ? slot_ : 0;
    return reinterpret_cast<float*>(shared_ + grid_.g.rest_at + slot * grid_.g.filter_bytes);
  }
  __device__ char* result() const {
    return shared_ + grid_.g.results_at + place() * grid_.g.result_bytes;
  }

 private:
  static constexpr int kLanes = 32;
  // Bits of turn_: parities of the present stage's barriers and of the place's, and the place.
  static constexpr int kStageTurn = 1, kPlaceTurn = 2, kPlace = 4;

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % kLanes; }
  __device__ bool is_served() const { return static_cast<int>(blockDim.x) > workers(); }
  __device__ int place() const { return (turn_ & kPlace) != 0 ? 1 : 0; }
  // Barriers in shared memory: whether a stage has arrived, whether a place is free.
  __device__ std::uint32_t barrier(int index) const {
    return shared_address(shared_ + grid_.g.barriers_at) + 8 * index;
  }
  __device__ std::uint32_t full(int slot) const { return barrier(2 + slot); }
  // A barrier of the block: whether all are done with the present stage.
  __device__ int done() const { return slot_; }
  __device__ std::uint32_t free_place(int place) const { return barrier(place); }
  // Those in the stages, as who serves tells the others.
  __device__ Unit* units() const {
    return reinterpret_cast<Unit*>(shared_ + grid_.g.barriers_at + 8 * (2 + grid_.stages));
  }
  __device__ char* stage_of(int slot) const {
    return shared_ + grid_.g.stages_at + slot * grid_.g.stage_bytes;
  }

  // The block's next unit.
  __device__ Unit take(std::uint32_t& number) {
    Unit unit{-1, 0, 0};
    if (claims_.any()) {
      const int index = __shfl_sync(0xffffffffu, lane() == 0 ? claims_.next(number) : 0, 0);
      if (index >= 0) unit = grid_.dealer.at(index);
    } else if (left_ > 0) {
      unit = unit_;
      grid_.dealer.advance(unit_);
      --left_;
    }
    return unit;
  }
  // Loads the unit that comes `ahead` units after the present one.
  __device__ void start(int ahead, int slot) {
    if (ahead >= left_ || threadIdx.x > 0) return;
    Unit unit = unit_;
    grid_.dealer.advance(unit, ahead);
    auto run = source_(unit);
    run.shared = stage_of(slot);
    load_run(run, full(slot), use_);
  }
  __device__ void advance() {
    if (++slot_ == grid_.stages) {
      slot_ = 0;
      turn_ ^= kStageTurn;
    }
    if (grid_.g.result_bytes > 0) turn_ ^= kPlace;
    if ((turn_ & kPlace) == 0) turn_ ^= kPlaceTurn;
  }

  const Grid& grid_;
  const Claims& claims_;
  const Use use_;
  char* shared_;
  const Source& source_;
  const Result& result_;
  const Filters& filters_;
  Unit unit_;
  int left_ = 0;  // units of a block that is not served, the present one included
  int slot_ = 0;
  int turn_ = 0;
  int filters_of_ = -1;
};
#endif

// All threads wait for a unit, compute it and send its results. No Pipeline is a member: it refers
// to the loads that would be another, and the object stood in local memory (64 to 196 bytes of
// spills in the four kernels that were looked at).
template <typename Grid, typename Source, typename Result, typename Filters>
class Together {
 public:
  __device__ Together(const Grid& grid, Use use, char* shared, const Source& source,
                      const Result& result, const Filters& filters)
      : grid_(grid),
        use_(use),
        shared_(shared),
        source_(source),
        result_(result),
        filters_(filters),
        loader_(reinterpret_cast<std::uint64_t*>(shared + grid.g.barriers_at), grid.stages, 1),
        unit_(grid.dealer.first(blockIdx.x)),
        left_(grid.dealer.count(blockIdx.x)) {
    __syncthreads();
#pragma unroll 1
    for (int i = 0; i < grid.stages - 1; ++i)
      start(i, i);
  }

  __device__ int workers() const { return static_cast<int>(blockDim.x); }
  __device__ bool serves() const { return false; }
  __device__ void serve() {}

  __device__ bool next() {
    if (left_ <= 0) {
      wait_until_sent<0>();
      return false;
    }
    if (unit_.group != filters_of_) {
      filters_of_ = unit_.group;
      filters_(unit_, filters(), static_cast<int>(threadIdx.x), workers());
    }
    wait_for_place(grid_.g.result_bytes);
    const int ahead = grid_.stages - 1;
    loader_.wait(slot_, ahead - 1);
    __syncthreads();
    start(ahead, slot_ == 0 ? ahead : slot_ - 1);
    return true;
  }
  __device__ void leave() {
    publish();
    __syncthreads();
    send_runs<Type>(1, [&](int) {
      auto run = result_(unit_);
      run.shared = result();
      return run;
    });
    --left_;
    grid_.dealer.advance(unit_);
    if (++slot_ == grid_.stages) slot_ = 0;
  }

  __device__ const Unit& unit() const { return unit_; }
  __device__ char* stage() const { return stage_of(slot_); }
  __device__ float* filters() const { return reinterpret_cast<float*>(shared_ + grid_.g.rest_at); }
  __device__ char* result() const {
    return shared_ + grid_.g.results_at + (left_ & 1) * grid_.g.result_bytes;
  }

 private:
  using Type = std::remove_pointer_t<decltype(std::declval<const Result&>()(Unit{}).global)>;

  __device__ char* stage_of(int slot) const {
    return shared_ + grid_.g.stages_at + slot * grid_.g.stage_bytes;
  }
  // Loads the unit that comes `ahead` units after the present one.
  __device__ void start(int ahead, int slot) {
    if (ahead >= left_) return loader_.skip();
    if (!loader_.loads()) return;
    Unit unit = unit_;
    grid_.dealer.advance(unit, ahead);
    loader_.load(slot, use_, [&](int) {
      auto run = source_(unit);
      run.shared = stage_of(slot);
      return run;
    });
  }

  const Grid& grid_;
  const Use use_;
  char* shared_;
  const Source& source_;
  const Result& result_;
  const Filters& filters_;
  RunLoader loader_;
  Unit unit_;
  int left_;
  int slot_ = 0;
  int filters_of_ = -1;
};

template <bool may_be_served, typename Grid, typename Source, typename Result, typename Filters>
__device__ inline auto walk_over(const Grid& grid, const Claims& claims, Use use, char* shared,
                                 const Source& source, const Result& result,
                                 const Filters& filters) {
#if __CUDA_ARCH__ >= 900
  if constexpr (may_be_served) {
    return Served(grid, claims, use, shared, source, result, filters);
  } else {
    return Together(grid, use, shared, source, result, filters);
  }
#else
  return Together(grid, use, shared, source, result, filters);
#endif
}

}  // namespace dwconv
