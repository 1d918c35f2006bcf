// The tile family: weight gradient with stride 1 and 2. A thread keeps the sums of some filter rows
// of one channel in registers over all units of its block's run; the threads of a block, and then
// the blocks, are added in a fixed order.
#pragma once

#include "launch_units.cuh"
#include "tile.h"
#include "tile_choice.cuh"
#include "tile_unit.cuh"

namespace dwconv::tile {

using WeightGradient = UnitSums<Grid>;

// `count` sums of each thread, added over the threads that share a channel and one of the roles, in
// the order of the threads by `parts` lanes each. `put(channel, role, index, sum)` takes them.
template <typename Put>
__device__ inline void add_threads(const Grid& grid, const float* batch, int roles, int count,
                                   int channels, const Put& put) {
  const Geometry& g = grid.g;
  // Of a channel, so many threads each time, and then those of other channels.
  const int entries = g.round / g.channels;
  const int neighbours = grid.neighbours.value();
  const int other_channels = (g.channels - 1) * neighbours;
  const int outputs = roles * g.channels * count;
  int parts = 1;
  const int threads = static_cast<int>(blockDim.x);
  while (parts < 32 && outputs * parts * 2 <= threads && parts * 2 <= entries)
    parts *= 2;
  const int part = threadIdx.x % parts;
  // The same number of rounds for every thread: they shuffle together.
  for (int begin = 0; begin < outputs; begin += threads / parts) {
    int output = begin + static_cast<int>(threadIdx.x) / parts;
    const bool in_range = output < outputs;
    const int index = output % count;
    output /= count;
    const int channel = output % g.channels;
    const int role = output / g.channels;
    float sum = 0;
    if (in_range) {
      const float* from = batch + index * threads + role * g.round + channel * neighbours;
      for (int entry = part; entry < entries; entry += parts)
        sum += from[entry + grid.neighbours.quotient(entry) * other_channels];
    }
    for (int step = parts / 2; step > 0; step /= 2)
      sum += __shfl_down_sync(0xffffffffu, sum, step);
    if (in_range && part == 0 && channel < channels) put(channel, role, index, sum);
  }
}

// The output gradient of an item, for the bias. Read anew: in the loop over the products, every
// weight gradient would pay for it (up to 9 % in float32).
template <typename S, int tile_rows, int columns>
__device__ inline float sum_of_item(const Item& item, const Geometry& g,
                                    const typename S::Type* grad_run, int valid_rows) {
  float sum = 0;
  for (int r = 0; r < tile_rows; ++r) {
    const int row = item.row + r * g.h.dilation;
    if (row >= valid_rows) break;
    const auto* from = grad_run + (item.plane * valid_rows + row) * g.w.result;
    for (int c = 0; c < columns; ++c) {
      const int column = item.column + c * g.column_classes;
      if (column < g.w.result) sum += S::widen(from[column]);
    }
  }
  return sum;
}

template <typename S, int kernel_w, int filter_rows, typename A>
__global__ void __launch_bounds__(kMaxThreads, resident_blocks(A::value, sum_rows_of(A::value),
                                                               filter_rows, kernel_w))
    sum_units(const WeightGradient p, const typename S::Type* __restrict__ input,
              const typename S::Type* __restrict__ grad_output, float* __restrict__ partial,
              const Gradients<S> result) {
  using Type = typename S::Type;
  constexpr int tile_rows = sum_rows_of(A::value);
  constexpr int columns = A::columns;
  extern __shared__ __align__(16) char shared[];
  const Grid& grid = p.grid;
  const Geometry& g = grid.g;
  auto* batch = reinterpret_cast<float*>(shared + g.rest_at);
  if (!p.partials.whole) let_next_kernel_start();

  const auto load = [&](RunLoader& loader, int slot, char* stage, const Unit& unit) {
    const RowRange rows = grid.source_rows(unit);
    const int planes = grid.planes(unit);
    loader.load(slot, p.use, [&](int i) {
      return i == 0 ? Run<const Type>{grid.source_run(input, unit, rows), stage,
                                      planes * rows.count() * g.w.source}
                    : Run<const Type>{grid.result_run(grad_output, unit), stage + g.grad_at,
                                      planes * grid.result_rows(unit).count() * g.w.result};
    });
  };
  Pipeline pipeline(grid, shared, 2, load);  // first of all: the first loads take longest
  const auto* zeros = reinterpret_cast<const Type*>(shared + g.zeros_at);
  zero_shared(shared + g.zeros_at, kZeroBytes);
  const int role = static_cast<int>(threadIdx.x) / g.round;
  const int first = static_cast<int>(threadIdx.x) - role * g.round;
  const int first_item = role < g.roles ? first : g.items;
  const Item item_of_thread = item_at(grid, first);
  // To the item that is `i` in its unit, a round later: at the same place of other planes.
  const auto go_on = [&](Item& item, int i) {
    if (g.planes > 1) {
      item.plane += g.round_planes;
    } else {
      item = item_at(grid, i);
    }
  };
  const bool of_bias = p.partials.bias && role == 0;  // all roles see the same gradient
  float sums[filter_rows][kernel_w] = {};
  float bias_sum = 0;

  while (pipeline.more()) {
    const Unit unit = pipeline.unit();
    const int planes = grid.planes(unit);
    const char* stage = pipeline.wait();
    const RowRange rows = grid.source_rows(unit);
    const Type* run =
        reinterpret_cast<const Type*>(stage) + misalignment(grid.source_run(input, unit, rows));
    const Type* grad_run = reinterpret_cast<const Type*>(stage + g.grad_at) +
                           misalignment(grid.result_run(grad_output, unit));
    const int source_plane = rows.count() * g.w.source;
    const int valid_rows = grid.result_rows(unit).count();
    const auto holds = [&](const Item& item) {
      return item.plane < planes && item.row < valid_rows && item.column < g.w.result;
    };
    Item item = item_of_thread;
    for (int i = first_item; i < g.items; i += g.round, go_on(item, i)) {
      if (!holds(item)) continue;
      const Type* from = grad_run + (item.plane * valid_rows + item.row) * g.w.result + item.column;
      float grad[tile_rows][columns];
#pragma unroll
      for (int r = 0; r < tile_rows; ++r) {
#pragma unroll
        for (int c = 0; c < columns; ++c)
          grad[r][c] = 0;
        if (item.row + r * g.h.dilation < valid_rows) {
          constexpr int unit = A::unit == 1 ? 1 : 2;
#pragma unroll
          for (int c = 0; c < columns; c += unit) {
            const int step = c * g.column_classes;
            if (c == 0 || item.column + step < g.w.result)
              load_unit<S, unit>(&grad[r][c], from + step);
          }
        }
        from += g.h.dilation * g.w.result;
      }
      int row = (unit.band * g.rows + item.row) * g.h.stride - g.h.pad;
      const Type* at = run + item.plane * source_plane + (row - rows.first) * g.w.source;
      row += role * filter_rows * g.h.dilation;
      at += role * filter_rows * g.h.dilation * g.w.source;
      TileRow<S, kernel_w, A> elements(item.column, g.w, grid.zero);
      // Rows past the last one loaded belong to taps or results that do not exist.
      walk_rows<(tile_rows - 1) * A::stride + filter_rows>(
          elements, at, row, rows, g.h, g.w.source, zeros, [&](int r) {
#pragma unroll
            for (int a = 0; a < filter_rows; ++a) {
              if (r < a || (r - a) % A::stride != 0 || (r - a) / A::stride >= tile_rows) continue;
#pragma unroll
              for (int c = 0; c < columns; ++c)
#pragma unroll
                for (int b = 0; b < kernel_w; ++b)
                  sums[a][b] = fmaf(elements(r, c, b), grad[(r - a) / A::stride][c], sums[a][b]);
            }
          });
    }
    if (of_bias) {
      item = item_of_thread;
      for (int i = first_item; i < g.items; i += g.round, go_on(item, i)) {
        if (holds(item))
          bias_sum += sum_of_item<S, tile_rows, columns>(item, g, grad_run, valid_rows);
      }
    }

    pipeline.advance();
    if (pipeline.more() && pipeline.unit().group == unit.group) continue;
    const int channels = grid.channels_of(unit);
    const Sink<S> sink(p, partial, result, shared + g.stages_at, unit.group);
#pragma unroll
    for (int first = 0; first < filter_rows * kernel_w; first += kSumBatch) {
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kSumBatch && first + i < filter_rows * kernel_w; ++i)
        batch[i * blockDim.x + threadIdx.x] = sums[(first + i) / kernel_w][(first + i) % kernel_w];
      __syncthreads();
      const int count = min(kSumBatch, filter_rows * kernel_w - first);
      add_threads(grid, batch, g.roles, count, channels,
                  [&](int channel, int role, int index, float sum) {
                    const int row = role * filter_rows + (first + index) / kernel_w;
                    const int tap = row * kernel_w + (first + index) % kernel_w;
                    if (row < g.h.kernel) sink.put(channel, tap, sum);
                  });
    }
    if (p.partials.bias) {
      __syncthreads();
      batch[threadIdx.x] = bias_sum;
      bias_sum = 0;
      __syncthreads();
      add_threads(grid, batch, 1, 1, channels, [&](int channel, int, int, float sum) {
        sink.put(channel, g.h.kernel * kernel_w, sum);
      });
    }
    sink.close(channels);
#pragma unroll
    for (int a = 0; a < filter_rows; ++a)
#pragma unroll
      for (int b = 0; b < kernel_w; ++b)
        sums[a][b] = 0;
  }
}

template <typename S>
using SumUnits = void (*)(WeightGradient, const typename S::Type*, const typename S::Type*, float*,
                          Gradients<S>);

template <typename S>
struct SumKernels {
  template <int kernel_w, typename A>
  static SumUnits<S> of(const Geometry& g) {
    constexpr int square = sum_filter_rows(A::value, S::dtype, kernel_w, kernel_w);
    if (g.filter_rows == square) return sum_units<S, kernel_w, square, A>;
    if constexpr (has_single_rows(A::value, S::dtype, kernel_w)) {
      if (g.filter_rows == 1) return sum_units<S, kernel_w, 1, A>;
    }
    if constexpr (A::unit == 1) {
      if (g.filter_rows == 3) return sum_units<S, kernel_w, 3, A>;
    }
    return nullptr;
  }
};

template <DType dtype>
void launch_sum_units(const Problem& problem, const Plan& plan, const Tensors& tensors,
                      cudaStream_t stream) {
  using S = Scalar<dtype>;
  const Geometry g = geometry(problem, plan.tiling);
  launch_unit_sums<S>("tile sum_units", choose<SumKernels<S>, dtype>(g), Grid(g, problem, plan),
                      problem, plan, tensors, stream);
}

}  // namespace dwconv::tile
