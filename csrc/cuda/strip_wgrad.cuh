// The strip family: weight gradient with stride 1 and 2. A thread keeps the sums of some filter
// rows of its channels in registers over all tiles of its block's share; the threads of a block,
// and then the blocks, are added in a fixed order.
#pragma once

#include "reduce.cuh"
#include "slot_sums.cuh"
#include "strip.h"
#include "strip_tile.cuh"

namespace dwconv::strip {

struct WeightGradient {
  Grid grid;
  Partials partials;
};

template <typename S, int kernel_w, int filter_rows, int stride, int channels>
__global__ void __launch_bounds__(most_threads(Pass::backward_weight),
                                  resident_blocks(Pass::backward_weight, kernel_w, channels == 2))
    sum_tiles(const __grid_constant__ WeightGradient p, const typename S::Type* __restrict__ input,
              const typename S::Type* __restrict__ grad_output, float* __restrict__ partial) {
  using Type = typename S::Type;
  using V = Vector<S, channels>;
  constexpr Shape shape = sum_shape(filter_rows, kernel_w, stride, channels == 2);
  constexpr int count = (shape.columns - 1) * stride + kernel_w;
  extern __shared__ __align__(16) float batch[];
  const Grid& grid = p.grid;
  const Geometry& g = grid.g;
  const Share share(grid, channels);
  let_next_kernel_start();
  float sums[filter_rows * kernel_w][channels] = {};
  float bias_sum[1][channels] = {};

  for (int index = share.works ? share.first : share.last; index < share.last;
       index += share.step) {
    const Item item(grid, index);
    const Type* from =
        grad_output +
        (static_cast<std::int64_t>(item.image) * g.h.result + item.row) * grid.result_pitch +
        static_cast<std::int64_t>(item.column) * grid.channels + share.channel;
    float grad[shape.rows][shape.columns][channels];
#pragma unroll
    for (int r = 0; r < shape.rows; ++r) {
#pragma unroll
      for (int c = 0; c < shape.columns; ++c) {
        typename V::Word word{};
        if (item.row + r * g.h.dilation < g.h.result && item.column + c * g.w.dilation < g.w.result)
          word = V::load(from + c * g.w.dilation * grid.channels);
        V::widen(grad[r][c], word);
      }
      from += g.h.dilation * grid.result_pitch;
    }
    const int skipped = share.role * filter_rows * g.h.dilation;
    const int row = item.row * stride - g.h.pad + skipped;
    const int column = item.column * stride - g.w.pad;
    Row<S, channels, count, sum_row_registers(kernel_w, channels == 2)> elements(
        column, g.w.dilation, g.w.source, grid.channels);
    const Type* at =
        input + (static_cast<std::int64_t>(item.image) * g.h.source + row) * grid.source_pitch +
        static_cast<std::int64_t>(column) * grid.channels + share.channel;
    // Rows past the last one read belong to taps or results that do not exist.
    walk_rows<(shape.rows - 1) * stride + filter_rows>(
        elements, at, row, g.h.dilation, g.h.source, grid.source_pitch,
        [&](int r, const float (&values)[count][channels]) {
#pragma unroll
          for (int a = 0; a < filter_rows; ++a) {
            if (r < a || (r - a) % stride != 0 || (r - a) / stride >= shape.rows) continue;
#pragma unroll
            for (int c = 0; c < shape.columns; ++c)
#pragma unroll
              for (int b = 0; b < kernel_w; ++b)
#pragma unroll
                for (int v = 0; v < channels; ++v) {
                  float& sum = sums[a * kernel_w + b][v];
                  sum = fmaf(values[c * stride + b][v], grad[(r - a) / stride][c][v], sum);
                }
          }
        });
    if (p.partials.bias) {
#pragma unroll
      for (int r = 0; r < shape.rows; ++r)
#pragma unroll
        for (int c = 0; c < shape.columns; ++c)
#pragma unroll
          for (int v = 0; v < channels; ++v)
            bias_sum[0][v] += grad[r][c][v];
    }
  }

  const Slots slots{g.width, g.slots, g.roles};
  const bool holds = share.role < g.roles;
  const int taps = g.h.kernel * kernel_w;
  float* to = partial + (static_cast<std::int64_t>(share.group) * grid.slices + share.slice) *
                            g.width * p.partials.sums();
  const auto is_there = [&](int at) { return share.group * g.width + at < grid.channels; };
  add_slots<kSumBatch>(slots, batch, sums, holds, [&](int at, int role, int index, float sum) {
    const int tap = role * filter_rows * kernel_w + index;
    if (tap < taps && is_there(at)) to[at * p.partials.sums() + tap] = sum;
  });
  if (p.partials.bias) {
    // All roles see the same gradient.
    add_slots<kSumBatch>(slots, batch, bias_sum, holds, [&](int at, int role, int, float sum) {
      if (role == 0 && is_there(at)) to[at * p.partials.sums() + taps] = sum;
    });
  }
}

template <DType dtype>
void launch_sum_tiles(const Problem& problem, const Plan& plan, const Tensors& tensors,
                      cudaStream_t stream) {
  using S = Scalar<dtype>;
  using Type = typename S::Type;
  const Geometry g =
      geometry(problem, plan.tiling.planes, plan.tiling.threads, plan.tiling.tile_rows);
  const WeightGradient p{Grid(g, problem, plan), partials_of(problem, g, plan.blocks)};
  auto* partial = static_cast<float*>(tensors.workspace);
  for_width(g.w.kernel, [&]<int kernel_w>() {
    const auto start = [&](auto kernel) {
      kernel<<<static_cast<unsigned>(plan.blocks), plan.threads, g.shared_bytes, stream>>>(
          p, static_cast<const Type*>(tensors.input), static_cast<const Type*>(tensors.output),
          partial);
    };
    const auto with_rows = [&]<int filter_rows>() {
      const auto with = [&]<int channels>() {
        start(g.h.stride == 1 ? sum_tiles<S, kernel_w, filter_rows, 1, channels>
                              : sum_tiles<S, kernel_w, filter_rows, 2, channels>);
      };
      if constexpr (has_pairs(Pass::backward_weight, kernel_w)) {
        if (g.pair) return with.template operator()<2>();
      }
      with.template operator()<1>();
    };
    constexpr int most = most_sum_rows(kernel_w);
    if (g.shape.filter_rows == 1) return with_rows.template operator()<1>();
    if (g.shape.filter_rows == most) return with_rows.template operator()<most>();
    if constexpr (most != 3) with_rows.template operator()<3>();
  });
  check_launch("strip sum_tiles");
  launch_add_partials<S>(p.partials, plan.sums_overlap, partial,
                         {static_cast<Type*>(tensors.weight), static_cast<Type*>(tensors.bias)},
                         stream);
}

}  // namespace dwconv::strip
