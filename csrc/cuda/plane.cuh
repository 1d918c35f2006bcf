// The plane family: forward and input gradient. A block is one warp: it walks over its units with
// the filters in registers, and many blocks of a multiprocessor hide each other's waits.
#pragma once

#include "launch_units.cuh"
#include "plane.h"
#include "plane_unit.cuh"

namespace dwconv::plane {

#ifdef __CUDA_ARCH__
inline constexpr int kMostBlocks = most_blocks(__CUDA_ARCH__ / 10);
#else
inline constexpr int kMostBlocks = most_blocks(0);  // the host launches, and compiles no kernel
#endif

struct Convolution {
  Grid grid;
  bool mirrored;  // turn the filters round
  Use use;        // of the source
};

// The filter of a lane's channel as its walk meets it, by way of a stage that is not in use. A
// barrier must come before; after it the stage may be loaded.
template <typename S, int kernel, typename A>
__device__ inline void load_filter(float (&filter)[kernel][kernel], const Convolution& p,
                                   const Lane<A>& lane, const Unit& unit, char* stage,
                                   const typename S::Type* weight) {
  using Type = typename S::Type;
  constexpr int taps = kernel * kernel;
  const int channels = p.grid.channels_of(unit), channel = lane.channel(p.grid);
  const Type* from = weight + p.grid.first_channel(unit) * taps;
  RunLoader::load_now(Run<const Type>{from, stage, channels * taps});
  __syncwarp();
  const bool turn_h = lane.far_h() != p.mirrored, turn_w = lane.far_w() != p.mirrored;
  const Type* first = reinterpret_cast<const Type*>(stage) + misalignment(from) + channel * taps +
                      (turn_h ? (kernel - 1) * kernel : 0) + (turn_w ? kernel - 1 : 0);
  const int row_step = turn_h ? -kernel : kernel;
  const int step = turn_w ? -1 : 1;
  if (channel < channels) {
#pragma unroll
    for (int a = 0; a < kernel; ++a)
#pragma unroll
      for (int b = 0; b < kernel; ++b)
        filter[a][b] = S::widen(first[a * row_step + b * step]);
  }
  publish();
  __syncwarp();
}

// Adds the taps of a tile to its sums; `from` is its corner.
template <typename S, int kernel, typename A>
__device__ inline void add_taps(float (&sums)[A::tile][A::tile],
                                const float (&filter)[kernel][kernel], const typename S::Type* from,
                                const Lane<A>& lane, const Geometry& g) {
  constexpr int pad = kernel / 2;
  constexpr int columns = A::columns(pad);
  const int rows = g.source_rows(pad);
#pragma unroll
  for (int r = 0; r < A::rows(pad); ++r) {
    if (!A::exact && r >= rows) break;
    float row[columns];
    load_row<S>(row, from, lane, g.columns);
    from += lane.row_step;
#pragma unroll
    for (int a = 0; a < kernel; ++a) {
      const int to = r - a + pad;
      if (to < 0 || to >= A::tile) continue;
#pragma unroll
      for (int b = 0; b < kernel; ++b)
#pragma unroll
        for (int c = 0; c < A::tile; ++c) {
          const int column = c + b - pad;
          if (column < 0 || column >= columns) continue;
          sums[to][c] = fmaf(row[column], filter[a][b], sums[to][c]);
        }
    }
  }
}

template <typename S, typename A>
__device__ inline void store_tile(typename S::Type* to, const float (&sums)[A::tile][A::tile],
                                  const Lane<A>& lane, const Geometry& g) {
  const int rows = lane.rows(g), columns = lane.columns(g);
#pragma unroll
  for (int r = 0; r < A::tile; ++r) {
#pragma unroll
    for (int c = 0; c < A::tile; ++c)
      if (A::exact || (r < rows && c < columns)) to[lane.at(c)] = S::round(sums[r][c]);
    to += lane.row_step;
  }
}

template <typename S, int kernel, typename A>
__global__ void __launch_bounds__(kLanes,
                                  std::min(resident_blocks(A::value, kernel, false), kMostBlocks))
    convolve(const __grid_constant__ Convolution p, const typename S::Type* __restrict__ source,
             const typename S::Type* __restrict__ weight, const typename S::Type* __restrict__ bias,
             typename S::Type* __restrict__ result) {
  using Type = typename S::Type;
  extern __shared__ __align__(16) char shared[];
  const Grid& grid = p.grid;
  const Geometry& g = grid.g;
  RunLoader loader(reinterpret_cast<std::uint64_t*>(shared + g.barriers_at), grid.stages, g.runs);
  int left = grid.dealer.count(blockIdx.x);
  if (left <= 0) return;
  Unit unit = grid.dealer.first(blockIdx.x);
  __syncwarp();
  const auto stage = [&](int slot) { return shared + slot * g.stage_bytes; };
  const auto load = [&](int slot, const Unit& of) {
    loader.load(slot, p.use, [&](int i) { return grid.run(source, of, i, stage(slot)); });
  };
  load(0, unit);

  const Lane<A> lane(grid, threadIdx.x, sizeof(Type));
  float filter[kernel][kernel] = {};
  float first_sum = 0;
  bool new_group = true;
  int slot = 0;
  for (;; --left) {
    const int next_slot = slot + 1 == grid.stages ? 0 : slot + 1;
    // With a third stage, the results before may still be on their way out of theirs.
    if (grid.stages > 2) {
      wait_until_sent<1>();
    } else {
      wait_until_sent<0>();
    }
    __syncwarp();
    if (new_group) {
      load_filter<S>(filter, p, lane, unit, stage(next_slot), weight);
      const int channel = lane.channel(grid);
      if (bias != nullptr && channel < grid.channels_of(unit))
        first_sum = S::widen(bias[grid.first_channel(unit) + channel]);
    }
    Unit next = unit;
    grid.dealer.advance(next);
    if (left > 1) {
      load(next_slot, next);
    } else {
      loader.skip();
    }
    loader.wait(slot, 1);
    __syncwarp();

    auto* elements = reinterpret_cast<Type*>(stage(slot));
    const bool there = lane.in(grid, unit);
    float sums[A::tile][A::tile];
#pragma unroll
    for (int r = 0; r < A::tile; ++r)
#pragma unroll
      for (int c = 0; c < A::tile; ++c)
        sums[r][c] = first_sum;
    if (there)
      add_taps<S, kernel, A>(sums, filter, elements + lane.corner(source, grid, unit), lane, g);
    __syncwarp();
    if (there) store_tile<S>(elements + lane.corner(result, grid, unit), sums, lane, g);
    publish();
    __syncwarp();
    send_runs<Type>(g.runs, [&](int i) { return grid.run(result, unit, i, stage(slot)); });
    if (left == 1) break;
    new_group = next.group != unit.group;
    unit = next;
    slot = next_slot;
  }
  wait_until_sent<0>();
}

template <typename S>
struct Convolutions {
  using Kernel = void (*)(Convolution, const typename S::Type*, const typename S::Type*,
                          const typename S::Type*, typename S::Type*);
  template <int kernel, typename A>
  static constexpr Kernel of() {
    return convolve<S, kernel, A>;
  }
};

template <DType dtype>
void launch_convolve(const Problem& problem, const Plan& plan, const Tensors& tensors,
                     cudaStream_t stream) {
  using S = Scalar<dtype>;
  const bool mirrored = problem.pass == Pass::backward_input;
  const Geometry g = geometry(problem, plan.tiling);
  const Convolution p{Grid(g, problem, plan), mirrored, use_of(plan)};
  const auto kernel = choose<Convolutions<S>>(g, problem);
  launch_convolution<S>("plane convolve", kernel, p, problem, plan, tensors, stream);
}

}  // namespace dwconv::plane
