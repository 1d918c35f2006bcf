// The plane family: weight gradient. A lane keeps the sums of all taps of one channel in registers
// over all units of its block's run; the lanes of a channel, and then the blocks, are added in a
// fixed order.
#pragma once

#include "launch_units.cuh"
#include "plane.h"
#include "plane_unit.cuh"

namespace dwconv::plane {

using WeightGradient = UnitSums<Grid>;

// Adds what a tile of the output gradient and its source give. Results that are not the lane's own
// count as zero.
template <typename S, int kernel, typename A>
__device__ inline void add_products(float (&sums)[kernel][kernel], const typename S::Type* from,
                                    const typename S::Type* grad_from, const Lane<A>& lane,
                                    const Geometry& g) {
  constexpr int pad = kernel / 2;
  constexpr int columns = A::columns(pad);
  const int rows = g.source_rows(pad);
  const int own_rows = lane.rows(g), own_columns = lane.columns(g);
  float grad[A::tile][A::tile];
#pragma unroll
  for (int r = 0; r < A::rows(pad); ++r) {
    if (!A::exact && r >= rows) break;
    // Rows of the gradient are loaded as the first row of the source that meets them.
#pragma unroll
    for (int h = r == 0 ? 0 : r + pad; h <= r + pad && h < A::tile; ++h)
#pragma unroll
      for (int c = 0; c < A::tile; ++c) {
        const bool own = A::exact || (h < own_rows && c < own_columns);
        grad[h][c] = own ? S::widen(grad_from[h * lane.row_step + lane.at(c)]) : 0.f;
      }
    float row[columns];
    load_row<S>(row, from, lane, g.columns);
    from += lane.row_step;
#pragma unroll
    for (int c = 0; c < A::tile; ++c)
#pragma unroll
      for (int a = 0; a < kernel; ++a) {
        const int h = r - a + pad;
        if (h < 0 || h >= A::tile) continue;
#pragma unroll
        for (int b = 0; b < kernel; ++b) {
          const int column = c + b - pad;
          if (column < 0 || column >= columns) continue;
          sums[a][b] = fmaf(row[column], grad[h][c], sums[a][b]);
        }
      }
  }
}

// The tile of the output gradient, for the bias. Read anew: among the products, every weight
// gradient would pay for it.
template <typename S, typename A>
__device__ inline float sum_of_tile(const typename S::Type* from, const Lane<A>& lane,
                                    const Geometry& g) {
  const int rows = A::exact ? A::tile : min(A::tile, lane.rows(g));
  const int columns = A::exact ? A::tile : min(A::tile, lane.columns(g));
  float sum = 0;
  for (int h = 0; h < rows; ++h)
    for (int c = 0; c < columns; ++c)
      sum += S::widen(from[h * lane.row_step + lane.at(c)]);
  return sum;
}

// The lanes leave their sums of two rows of the filter, `upper` and the one as far from the end, as
// the filter is in memory: a lane that walks from the far edge has them the other way round.
template <int kernel, typename A>
__device__ inline void leave_sums(float* batch, const float (&sums)[kernel][kernel], int upper,
                                  const Lane<A>& lane) {
  const int lower = kernel - 1 - upper;
#pragma unroll
  for (int b = 0; b < kernel; ++b) {
    const int column = lane.far_w() ? kernel - 1 - b : b;
    float* to = batch + column * blockDim.x + threadIdx.x;
    to[lane.far_h() && lower != upper ? kernel * blockDim.x : 0] = sums[upper][b];
    if (lower != upper) to[lane.far_h() ? 0 : kernel * blockDim.x] = sums[lower][b];
  }
}

// `count` sums of each lane, added over the lanes of a channel, in the order of the lanes by
// `parts` threads each. `put(channel, index, sum)` takes them.
template <typename Put>
__device__ inline void add_lanes(const Grid& grid, const float* batch, int count, int channels,
                                 const Put& put) {
  const Geometry& g = grid.g;
  const int entries = g.images * g.tiles;
  const int other_channels = (g.channels - 1) * g.tiles;
  const int outputs = channels * count;
  const int threads = static_cast<int>(blockDim.x);
  int parts = 1;
  while (parts < 32 && outputs * parts * 2 <= threads && parts * 2 <= entries)
    parts *= 2;
  const int part = threadIdx.x % parts;
  // The same number of rounds for every thread: they shuffle together.
  for (int begin = 0; begin < outputs; begin += threads / parts) {
    const int output = begin + static_cast<int>(threadIdx.x) / parts;
    const bool in_range = output < outputs;
    const int channel = output / count;
    const int index = output - channel * count;
    float sum = 0;
    if (in_range) {
      const float* from = batch + index * threads + channel * g.tiles;
      for (int entry = part; entry < entries; entry += parts)
        sum += from[entry + grid.tiles.quotient(entry) * other_channels];
    }
    for (int step = parts / 2; step > 0; step /= 2)
      sum += __shfl_down_sync(0xffffffffu, sum, step);
    if (in_range && part == 0) put(channel, index, sum);
  }
}

template <typename S, int kernel, typename A>
__global__ void __launch_bounds__(kMaxThreads, resident_blocks(A::value, kernel, true))
    sum_units(const __grid_constant__ WeightGradient p, const typename S::Type* __restrict__ input,
              const typename S::Type* __restrict__ grad_output, float* __restrict__ partial,
              const Gradients<S> result) {
  using Type = typename S::Type;
  extern __shared__ __align__(16) char shared[];
  const Grid& grid = p.grid;
  const Geometry& g = grid.g;
  auto* batch = reinterpret_cast<float*>(shared + g.sums_at);
  if (!p.partials.whole) let_next_kernel_start();
  const auto load = [&](RunLoader& loader, int slot, char* stage, const Unit& unit) {
    loader.load(slot, p.use, [&](int i) {
      return i < g.runs ? grid.run(input, unit, i, stage)
                        : grid.run(grad_output, unit, i - g.runs, stage + g.grad_at);
    });
  };
  const Lane<A> lane(grid, threadIdx.x, sizeof(Type));
  float sums[kernel][kernel] = {};
  float bias_sum = 0;

  Pipeline pipeline(grid, shared, 2 * g.runs, load);
  while (pipeline.more()) {
    const Unit unit = pipeline.unit();
    const char* stage = pipeline.wait();
    if (lane.in(grid, unit)) {
      const auto* from = reinterpret_cast<const Type*>(stage);
      const auto* grad_from = reinterpret_cast<const Type*>(stage + g.grad_at);
      const Type* grad_tile = grad_from + lane.corner(grad_output, grid, unit);
      add_products<S, kernel, A>(sums, from + lane.corner(input, grid, unit), grad_tile, lane, g);
      if (p.partials.bias) bias_sum += sum_of_tile<S>(grad_tile, lane, g);
    }

    pipeline.advance();
    if (pipeline.more() && pipeline.unit().group == unit.group) continue;
    const int channels = grid.channels_of(unit);
    const Sink<S> sink(p, partial, result, shared, unit.group);
#pragma unroll
    for (int upper = 0; upper <= kernel / 2; ++upper) {
      __syncthreads();
      leave_sums<kernel, A>(batch, sums, upper, lane);
      __syncthreads();
      const int lower = kernel - 1 - upper;
      add_lanes(grid, batch, lower == upper ? kernel : 2 * kernel, channels,
                [&](int channel, int index, float sum) {
                  const int row = index < kernel ? upper : lower;
                  sink.put(channel, row * kernel + (index < kernel ? index : index - kernel), sum);
                });
    }
    if (p.partials.bias) {
      __syncthreads();
      batch[threadIdx.x] = bias_sum;
      bias_sum = 0;
      __syncthreads();
      add_lanes(grid, batch, 1, channels,
                [&](int channel, int, float sum) { sink.put(channel, kernel * kernel, sum); });
    }
    sink.close(channels);
#pragma unroll
    for (int a = 0; a < kernel; ++a)
#pragma unroll
      for (int b = 0; b < kernel; ++b)
        sums[a][b] = 0;
  }
}

template <typename S>
struct SumKernels {
  using Kernel = void (*)(WeightGradient, const typename S::Type*, const typename S::Type*, float*,
                          Gradients<S>);
  template <int kernel, typename A>
  static constexpr Kernel of() {
    return sum_units<S, kernel, A>;
  }
};

template <DType dtype>
void launch_sum_units(const Problem& problem, const Plan& plan, const Tensors& tensors,
                      cudaStream_t stream) {
  using S = Scalar<dtype>;
  const Geometry g = geometry(problem, plan.tiling);
  launch_unit_sums<S>("plane sum_units", choose<SumKernels<S>>(g, problem), Grid(g, problem, plan),
                      problem, plan, tensors, stream);
}

}  // namespace dwconv::plane
