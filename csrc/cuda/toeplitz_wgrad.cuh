// The Toeplitz family: weight gradient. The same windows of 16 columns at 16 positions, now summed
// over the positions: times the strips of the output gradient they give, for each filter row, a
// 16 x 8 matrix of products whose diagonals are the gradients of its taps. A warp keeps the
// matrices of one channel in registers over all units of its block's run; warps, and then blocks,
// are added in a fixed order.
#pragma once

#include "check.cuh"
#include "mma.cuh"
#include "reduce.cuh"
#include "toeplitz.h"
#include "toeplitz_feed.cuh"

namespace dwconv::toeplitz {

struct WeightGradient {
  Grid grid;
  Partials partials;
  int stages;
};

// Where a lane's share of the loads begins, and the bytes from one row to the next.
struct Rows {
  std::uint32_t at;
  int step;
};

// Rows of the source go by while `reach` rows of the output gradient stay: row t of the window
// meets rows t - reach + 1 to t.
template <typename Type, int reach>
__device__ inline void walk(Rows source, Rows grad, int rows, float (&sums)[reach][4]) {
  std::uint32_t window[4], strip[reach][2];
  unroll<reach>([&](auto row) {
    constexpr int t = decltype(row)::value;
    load_turned(window, source.at);
    load_turned(strip[t], grad.at);
    source.at += source.step;
    grad.at += grad.step;
#pragma unroll
    for (int i = 0; i <= t; ++i)
      multiply_add<Type>(sums[i], window, strip[t - i], sums[i]);
    return true;
  });
  int first = reach;
#pragma unroll 1
  for (; first + reach <= rows; first += reach) {
    unroll<reach>([&](auto row) {
      constexpr int t = decltype(row)::value;
      load_turned(window, source.at);
      load_turned(strip[t], grad.at);
      source.at += source.step;
      grad.at += grad.step;
#pragma unroll
      for (int i = 0; i < reach; ++i)
        multiply_add<Type>(sums[i], window, strip[(t - i + reach) % reach], sums[i]);
      return true;
    });
  }
  // The last rows of the window, past the last of the gradient.
#pragma unroll 1
  for (const int last = rows + reach - 1; first < last; first += reach) {
    unroll<reach>([&](auto row) {
      constexpr int t = decltype(row)::value;
      const int past = first + t - rows;  // of the gradient's rows
      if (past >= reach - 1) return false;
      load_turned(window, source.at);
      source.at += source.step;
      if (past < 0) {
        load_turned(strip[t], grad.at);
        grad.at += grad.step;
      }
#pragma unroll
      for (int i = reach - 1; i >= 0; --i) {
        if (i <= past) break;
        multiply_add<Type>(sums[i], window, strip[(t - i + reach) % reach], sums[i]);
      }
      return true;
    });
  }
}

// The diagonals of a warp's matrices: column m of the window and column n of the strip meet in tap
// m - n - shift. A lane adds one tap of kSumRows filter rows.
template <int reach>
__device__ inline void add_diagonals(const Geometry& g, const float (&sums)[reach][4],
                                     float* scratch, float* totals) {
  const int lane = threadIdx.x % 32;
  const int row_of_lane = lane / g.w.kernel;
  const int tap = lane - row_of_lane * g.w.kernel;
  float* to = scratch + lane / 4 * kSumPitch + lane % 4 * 2;
#pragma unroll
  for (int first = 0; first < reach; first += kSumRows) {
#pragma unroll
    for (int i = 0; i < kSumRows && first + i < reach; ++i) {
      float* matrix = to + i * kWindow * kSumPitch;
      matrix[0] = sums[first + i][0];
      matrix[1] = sums[first + i][1];
      matrix[8 * kSumPitch] = sums[first + i][2];
      matrix[8 * kSumPitch + 1] = sums[first + i][3];
    }
    __syncwarp();
    const int row = first + row_of_lane;
    if (row_of_lane < kSumRows && row < reach && row % g.h.dilation == 0) {
      const float* from =
          scratch + row_of_lane * kWindow * kSumPitch + (g.shift + tap * g.w.dilation) * kSumPitch;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kColumns; ++n)
        sum += from[n * (kSumPitch + 1)];
      totals[row / g.h.dilation * g.w.kernel + tap] = sum;
    }
    __syncwarp();
  }
}

template <typename S, int reach>
__global__ void __launch_bounds__(kThreads, resident_blocks(reach))
    sum_units(const __grid_constant__ WeightGradient p, const typename S::Type* __restrict__ input,
              const typename S::Type* __restrict__ grad_output, float* __restrict__ partial) {
  if constexpr (!kTensorCores) return;
  using Type = typename S::Type;
  extern __shared__ __align__(16) char shared[];
  const Grid& grid = p.grid;
  const Geometry& g = grid.g;
  let_next_kernel_start();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int taps = g.h.kernel * g.w.kernel;
  auto* totals = reinterpret_cast<float*>(shared + g.rest_at);  // of each warp
  float* scratch = totals + kWarps * taps + warp * kSumRows * kWindow * kSumPitch;
  const Feeder<Type> source(grid, g.source, input, shared);
  const Feeder<Type> grad(grid, g.grad, grad_output, shared);

  const std::int64_t begin = run_begin(g.units, blockIdx.x, gridDim.x);
  const auto units = static_cast<int>(run_begin(g.units, blockIdx.x + 1, gridDim.x) - begin);
  Unit next = Unit::at(begin, g.image_blocks, g.bands);
  Unit unit = next;

  zero_shared(shared, g.rest_at);
  __syncthreads();
  source.prepare();
  grad.prepare();
  __syncthreads();

  // A warp stays with one plane of the group; those of a plane take its positions in turn.
  const int warps = kWarps / g.planes;
  const int plane = warp / warps;
  float sums[reach][4] = {};
  int slot = 0, next_slot = 0;
  // The first rounds only start copies.
  for (int index = 1 - p.stages; index < units; ++index) {
    if (index >= 0) {
      wait_for_copies(p.stages - 2);
      __syncthreads();
    }
    if (index + p.stages - 1 < units) {
      source.load(next, next_slot);
      grad.load(next, next_slot);
      next.advance(g.image_blocks, g.bands);
      if (++next_slot == p.stages) next_slot = 0;
    }
    commit_copies();
    if (index < 0) continue;
    if (g.source.raw > 0) source.place(unit, slot);
    if (g.grad.raw > 0) grad.place(unit, slot);
    if (g.source.raw > 0 || g.grad.raw > 0) __syncthreads();

    const int planes = grid.planes(unit), images = grid.images(unit);
    const int positions = plane < planes ? images * g.walks * g.strips : 0;
    const Stage &s = g.source.stage, &t = g.grad.stage;
    const Type* windows = source.tile(slot) + plane * s.plane + lane / 8 % 2 * 8;
    const Type* strips = grad.tile(slot) + plane * t.plane;
    for (int first = warp % warps * kPositions; first < positions; first += warps * kPositions) {
      const Position x = grid.position(first + lane % 8 + lane / 16 * 8);
      const Position y = grid.position(first + lane % 16);
      Rows x_rows{shared_address(shared), 0}, y_rows = x_rows;  // zeros
      if (x.image < images) {
        x_rows = {shared_address(windows + x.image * g.source.image + x.row * s.pitch +
                                 x.strip * kColumns),
                  s.pitch * static_cast<int>(sizeof(Type))};
      }
      if (y.image < images) {
        y_rows = {
            shared_address(strips + y.image * g.grad.image + y.row * t.pitch + y.strip * kColumns),
            t.pitch * static_cast<int>(sizeof(Type))};
      }
      walk<Type, reach>(x_rows, y_rows, g.walk_rows, sums);
    }

    const int group = unit.group;
    unit.advance(g.image_blocks, g.bands);
    if (++slot == p.stages) slot = 0;
    if (index + 1 < units && unit.group == group) continue;
    add_diagonals<reach>(g, sums, scratch, totals + warp * taps);
    __syncthreads();
    float* to = partial + partial_offset(p.partials, blockIdx.x, group);
    for (int i = threadIdx.x; i < planes * taps; i += kThreads) {
      const int of_plane = i / taps;
      const float* from = totals + of_plane * warps * taps + i - of_plane * taps;
      float sum = from[0];
      for (int other = 1; other < warps; ++other)
        sum += from[other * taps];
      to[i] = sum;
    }
#pragma unroll
    for (int i = 0; i < reach; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        sums[i][j] = 0;
  }
}

template <typename S>
using SumUnits = void (*)(WeightGradient, const typename S::Type*, const typename S::Type*, float*);

template <typename S, int... reach>
SumUnits<S> sum_units_of(int reach_h, std::integer_sequence<int, reach...>) {
  constexpr SumUnits<S> table[] = {sum_units<S, reach + 1>...};
  return table[reach_h - 1];
}

template <DType dtype>
void launch_sum_units(const Problem& problem, const Plan& plan, const Tensors& tensors,
                      cudaStream_t stream) {
  using S = Scalar<dtype>;
  using Type = typename S::Type;
  const Geometry g = geometry(problem, plan.tiling);
  const WeightGradient p{.grid = Grid(g, problem),
                         .partials = partials_of(problem, g, plan.blocks),
                         .stages = plan.tiling.stages};
  const auto kernel = sum_units_of<S>(g.reach_h, std::make_integer_sequence<int, kMaxReachH>{});
  allow_shared(kernel, g.shared_bytes);
  auto* partial = static_cast<float*>(tensors.workspace);
  kernel<<<static_cast<unsigned>(plan.blocks), kThreads, g.shared_bytes, stream>>>(
      p, static_cast<const Type*>(tensors.input), static_cast<const Type*>(tensors.output),
      partial);
  check_launch("toeplitz sum_units");
  launch_add_partials<S>(p.partials, partial, static_cast<Type*>(tensors.weight), stream);
}

}  // namespace dwconv::toeplitz
