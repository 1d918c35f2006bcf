// The strip family: input gradient with stride 2, by phases. Result 2 * q + phase - pad takes only
// the taps of its own phase, 2 * m + phase, from the output gradient at q - m: so the four results
// of a step along both axes share their reads, and no tap is tried in vain.
#pragma once

#include "check.cuh"
#include "strip.cuh"
#include "strip_tile.cuh"

namespace dwconv::strip {

struct Phases {
  Grid grid;
  int kernel_h;
  int result_h, result_w;
  int pad_h, pad_w;
};

template <typename S, int kernel_w, int channels>
__global__ void __launch_bounds__(most_threads(Pass::backward_input),
                                  resident_blocks(Pass::backward_input, kernel_w, channels == 2))
    scatter(const __grid_constant__ Phases p, const typename S::Type* __restrict__ source,
            const typename S::Type* __restrict__ weight, typename S::Type* __restrict__ result) {
  using Type = typename S::Type;
  constexpr Shape shape = kPhaseShape;
  constexpr int half_w = (kernel_w + 1) / 2;
  constexpr int count = shape.columns + half_w - 1;
  extern __shared__ __align__(16) float filters[];
  const Grid& grid = p.grid;
  const Geometry& g = grid.g;
  const Share share(grid, channels);
  store_filters<S>(grid, share.group, false, weight, nullptr, filters);
  if (!share.works) return;
  const float* filter = filters + share.vector * channels;

  for (int index = share.first; index < share.last; index += share.step) {
    const Item item(grid, index);
    const int column = item.column - (half_w - 1);
    // Two sets of registers: with more N128 C96 112x112 k3 float32 took 313 us, and 281 so.
    Row<S, channels, count, 0> elements(column, 1, g.w.source, grid.channels);
    const Type* at = source +
                     static_cast<std::int64_t>(item.image) * g.h.source * grid.source_pitch +
                     static_cast<std::int64_t>(column) * grid.channels + share.channel;
    float sums[2 * shape.rows][2 * shape.columns][channels] = {};
    // So many pairs of filter rows, the first of which is `first`; of the last one there may be
    // but the upper row.
    const auto add = [&]<int pairs>(int first) {
      const bool even = 2 * (first + pairs) <= p.kernel_h;
      float taps[2 * pairs][kernel_w][channels];
#pragma unroll
      for (int a = 0; a < 2 * pairs; ++a) {
        if (a == 2 * pairs - 1 && !even) continue;
#pragma unroll
        for (int b = 0; b < kernel_w; ++b)
          load_tap<channels>(taps[a][b], filter + ((2 * first + a) * kernel_w + b) * g.width);
      }
      const int top = item.row - first - (pairs - 1);
      walk_rows<shape.rows + pairs - 1>(
          elements, at + top * grid.source_pitch, top, 1, g.h.source, grid.source_pitch,
          [&](int i, const float (&values)[count][channels]) {
#pragma unroll
            for (int pair = 0; pair < pairs; ++pair) {
              const int r = i + pair - (pairs - 1);
              if (r < 0 || r >= shape.rows) continue;
#pragma unroll
              for (int phase = 0; phase < 2; ++phase) {
                if (pair == pairs - 1 && phase == 1 && !even) continue;
#pragma unroll
                for (int c = 0; c < shape.columns; ++c)
#pragma unroll
                  for (int b = 0; b < kernel_w; ++b)
#pragma unroll
                    for (int v = 0; v < channels; ++v) {
                      float& sum = sums[2 * r + phase][2 * c + b % 2][v];
                      sum = fmaf(values[c + half_w - 1 - b / 2][v], taps[2 * pair + phase][b][v],
                                 sum);
                    }
              }
            }
          });
    };
    int first = 0;
#pragma unroll 1
    for (; first + 2 <= g.h.kernel; first += 2)
      add.template operator()<2>(first);
    if (first < g.h.kernel) add.template operator()<1>(first);

    const int row = 2 * item.row - p.pad_h;
    const int left = 2 * item.column - p.pad_w;
    Type* to = result +
               (static_cast<std::int64_t>(item.image) * p.result_h + row) * grid.result_pitch +
               static_cast<std::int64_t>(left) * grid.channels + share.channel;
#pragma unroll
    for (int r = 0; r < 2 * shape.rows; ++r) {
      if (static_cast<unsigned>(row + r) < static_cast<unsigned>(p.result_h)) {
#pragma unroll
        for (int c = 0; c < 2 * shape.columns; ++c) {
          if (static_cast<unsigned>(left + c) < static_cast<unsigned>(p.result_w))
            Vector<S, channels>::store(to + c * grid.channels, sums[r][c]);
        }
      }
      to += grid.result_pitch;
    }
  }
}

template <DType dtype>
void launch_scatter(const Problem& problem, const Plan& plan, const Tensors& tensors,
                    cudaStream_t stream) {
  using S = Scalar<dtype>;
  using Type = typename S::Type;
  const Geometry g =
      geometry(problem, plan.tiling.planes, plan.tiling.threads, plan.tiling.tile_rows);
  Phases p{.grid = Grid(g, problem, plan),
           .kernel_h = static_cast<int>(problem.h.kernel),
           .result_h = static_cast<int>(problem.h.input),
           .result_w = static_cast<int>(problem.w.input),
           .pad_h = static_cast<int>(problem.h.pad_before),
           .pad_w = static_cast<int>(problem.w.pad_before)};
  p.grid.result_pitch = problem.channels * problem.w.input;
  for_width(static_cast<int>(problem.w.kernel), [&]<int kernel_w>() {
    const auto start = [&](auto kernel) {
      kernel<<<static_cast<unsigned>(plan.blocks), plan.threads, g.shared_bytes, stream>>>(
          p, static_cast<const Type*>(tensors.output), static_cast<const Type*>(tensors.weight),
          static_cast<Type*>(tensors.input));
    };
    if constexpr (has_pairs(Pass::backward_input, kernel_w)) {
      if (g.pair) return start(scatter<S, kernel_w, 2>);
    }
    start(scatter<S, kernel_w, 1>);
  });
  check_launch("strip scatter");
}

// An input gradient with stride 1 is a forward pass with the filters turned round.
template <DType dtype>
void launch_backward_input(const Problem& problem, const Plan& plan, const Tensors& tensors,
                           cudaStream_t stream) {
  if (by_phases(problem)) {
    launch_scatter<dtype>(problem, plan, tensors, stream);
  } else {
    launch_convolve<dtype>(problem, plan, tensors, stream);
  }
}

}  // namespace dwconv::strip
