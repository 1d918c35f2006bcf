// The strip family: forward with stride 1 and 2, input gradient with stride 1. A thread keeps the
// results of a tile in registers and goes down the rows that they read, once for every few rows of
// the filter.
#pragma once

#include "check.cuh"
#include "strip.h"
#include "strip_tile.cuh"

namespace dwconv::strip {

struct Convolution {
  Grid grid;
  bool mirrored;  // turn the filters round
};

// Filters of the block's channels into shared memory, tap by tap; and then their biases.
template <typename S>
__device__ inline void store_filters(const Grid& grid, int group, bool mirrored,
                                     const typename S::Type* weight, const typename S::Type* bias,
                                     float* filters) {
  const int taps = grid.taps.value();
  const int first = group * grid.g.width;
  const int channels = min(grid.g.width, grid.channels - first);
  const typename S::Type* from = weight + static_cast<std::int64_t>(first) * taps;
  in_batches<kFilterBatch>(
      channels * taps, [&](int i) { return from[i]; },
      [&](int channel, typename S::Type element) {
        const int tap = grid.taps.remainder(channel);
        filters[(mirrored ? taps - 1 - tap : tap) * grid.g.width + channel] = S::widen(element);
      });
  for (int i = threadIdx.x; i < channels; i += blockDim.x)
    filters[taps * grid.g.width + i] = bias == nullptr ? 0.f : S::widen(bias[first + i]);
  __syncthreads();
}

template <int channels>
__device__ inline void load_tap(float (&tap)[channels], const float* from) {
  Vector<Scalar<DType::float32>, channels>::widen(
      tap, Vector<Scalar<DType::float32>, channels>::load(from));
}

template <typename S, int kernel_w, int stride, int channels, int rows>
__global__ void __launch_bounds__(most_threads(Pass::forward),
                                  resident_blocks(Pass::forward, kernel_w, channels == 2))
    convolve(const __grid_constant__ Convolution p, const typename S::Type* __restrict__ source,
             const typename S::Type* __restrict__ weight, const typename S::Type* __restrict__ bias,
             typename S::Type* __restrict__ result) {
  using Type = typename S::Type;
  constexpr Shape shape = convolution_shape(kernel_w, stride, channels == 2, rows);
  constexpr int count = (shape.columns - 1) * stride + kernel_w;
  extern __shared__ __align__(16) float filters[];
  const Grid& grid = p.grid;
  const Geometry& g = grid.g;
  const Share share(grid, channels);
  store_filters<S>(grid, share.group, p.mirrored, weight, bias, filters);
  if (!share.works) return;
  const float* filter = filters + share.vector * channels;

  for (int index = share.first; index < share.last; index += share.step) {
    const Item item(grid, index);
    const int row = item.row * stride - g.h.pad;
    const int column = item.column * stride - g.w.pad;
    const Type* at =
        source + (static_cast<std::int64_t>(item.image) * g.h.source + row) * grid.source_pitch +
        static_cast<std::int64_t>(column) * grid.channels + share.channel;
    Row<S, channels, count, row_registers(kernel_w, channels == 2, rows)> elements(
        column, g.w.dilation, g.w.source, grid.channels);
    float sums[shape.rows][shape.columns][channels];
    float start[channels];
    load_tap<channels>(start, filter + g.h.kernel * kernel_w * g.width);
#pragma unroll
    for (int r = 0; r < shape.rows; ++r)
#pragma unroll
      for (int c = 0; c < shape.columns; ++c)
#pragma unroll
        for (int v = 0; v < channels; ++v)
          sums[r][c][v] = start[v];

    const auto add = [&]<int filter_rows>(int first) {
      float taps[filter_rows][kernel_w][channels];
#pragma unroll
      for (int i = 0; i < filter_rows; ++i)
#pragma unroll
        for (int j = 0; j < kernel_w; ++j)
          load_tap<channels>(taps[i][j], filter + ((first + i) * kernel_w + j) * g.width);
      const int skipped = first * g.h.dilation;
      walk_rows<(shape.rows - 1) * stride + filter_rows>(
          elements, at + skipped * grid.source_pitch, row + skipped, g.h.dilation, g.h.source,
          grid.source_pitch, [&](int r, const float (&values)[count][channels]) {
#pragma unroll
            for (int i = 0; i < filter_rows; ++i) {
              if (r < i || (r - i) % stride != 0 || (r - i) / stride >= shape.rows) continue;
#pragma unroll
              for (int j = 0; j < kernel_w; ++j)
#pragma unroll
                for (int c = 0; c < shape.columns; ++c)
#pragma unroll
                  for (int v = 0; v < channels; ++v) {
                    float& sum = sums[(r - i) / stride][c][v];
                    sum = fmaf(values[c * stride + j][v], taps[i][j][v], sum);
                  }
            }
          });
    };
    int first = 0;
#pragma unroll 1
    for (; first + shape.filter_rows <= g.h.kernel; first += shape.filter_rows)
      add.template operator()<shape.filter_rows>(first);
    // What is left of a square filter goes at once.
    constexpr int rest = kernel_w % shape.filter_rows;
    if constexpr (rest > 1) {
      if (g.h.kernel - first == rest) {
        add.template operator()<rest>(first);
        first += rest;
      }
    }
#pragma unroll 1
    for (; first < g.h.kernel; ++first)
      add.template operator()<1>(first);

    Type* to = result +
               (static_cast<std::int64_t>(item.image) * g.h.result + item.row) * grid.result_pitch +
               static_cast<std::int64_t>(item.column) * grid.channels + share.channel;
#pragma unroll
    for (int r = 0; r < shape.rows; ++r) {
      if (item.row + r * g.h.dilation < g.h.result) {
#pragma unroll
        for (int c = 0; c < shape.columns; ++c) {
          if (item.column + c * g.w.dilation < g.w.result)
            Vector<S, channels>::store(to + c * g.w.dilation * grid.channels, sums[r][c]);
        }
      }
      to += g.h.dilation * grid.result_pitch;
    }
  }
}

template <DType dtype>
void launch_convolve(const Problem& problem, const Plan& plan, const Tensors& tensors,
                     cudaStream_t stream) {
  using S = Scalar<dtype>;
  using Type = typename S::Type;
  const bool backward = problem.pass == Pass::backward_input;
  const Geometry g =
      geometry(problem, plan.tiling.planes, plan.tiling.threads, plan.tiling.tile_rows);
  const Convolution p{Grid(g, problem, plan), backward};
  for_width(g.w.kernel, [&]<int kernel_w>() {
    const auto start = [&](auto kernel) {
      kernel<<<static_cast<unsigned>(plan.blocks), plan.threads, g.shared_bytes, stream>>>(
          p, static_cast<const Type*>(backward ? tensors.output : tensors.input),
          static_cast<const Type*>(tensors.weight), static_cast<const Type*>(tensors.bias),
          static_cast<Type*>(backward ? tensors.input : tensors.output));
    };
    const auto with = [&]<int channels>() {
      const auto with_stride = [&]<int stride>() {
        if constexpr (has_high_tiles(kernel_w, stride)) {
          if (g.shape.rows == kRows) return start(convolve<S, kernel_w, stride, channels, kRows>);
        }
        start(convolve<S, kernel_w, stride, channels, kLowRows>);
      };
      if (g.h.stride == 2) return with_stride.template operator()<2>();
      with_stride.template operator()<1>();
    };
    if constexpr (has_pairs(Pass::forward, kernel_w)) {
      if (g.pair) return with.template operator()<2>();
    }
    with.template operator()<1>();
  });
  check_launch("strip convolve");
}

}  // namespace dwconv::strip
