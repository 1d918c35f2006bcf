// The ring family: forward with stride 1 and 2, input gradient with stride 1.
#pragma once

#include <utility>

#include "batches.cuh"
#include "check.cuh"
#include "ring.h"
#include "ring_rows.cuh"

namespace dwconv::ring {

struct Convolution {
  Grid grid;
  bool mirrored;  // turn the filters round
};

// A thread's filters, by way of shared memory, where neighbouring channels do not share a bank.
template <typename S, int taps, int channels>
__device__ inline void load_filters(float (&filters)[taps][channels], const Grid& grid,
                                    const typename S::Type* weight, bool mirrored, int first,
                                    int channel, float* shared) {
  const int count = min(grid.g.width, grid.channels - first) * taps;
  const typename S::Type* from = weight + static_cast<std::int64_t>(first) * taps;
  in_batches<8>(
      count, [&](int i) { return from[i]; },
      [&](int i, typename S::Type element) { shared[i] = S::widen(element); });
  __syncthreads();
#pragma unroll
  for (int i = 0; i < taps; ++i)
#pragma unroll
    for (int v = 0; v < channels; ++v)
      filters[i][v] = first + channel < grid.channels
                          ? shared[(channel + v) * taps + (mirrored ? taps - 1 - i : i)]
                          : 0.f;
  __syncthreads();
}

template <typename S, int kernel_h, int kernel_w, int stride, int lanes>
__global__ void __launch_bounds__(
    kMaxThreads,
    resident_blocks(Pass::forward, {kernel_h, kernel_w},
                    shape_of(Pass::forward, S::dtype, {kernel_h, kernel_w}, stride), stride))
    convolve(const __grid_constant__ Convolution p, const __grid_constant__ CUtensorMap source,
             const typename S::Type* __restrict__ weight, const typename S::Type* __restrict__ bias,
             typename S::Type* __restrict__ result) {
#if __CUDA_ARCH__ >= 900
  using Type = typename S::Type;
  constexpr Shape shape = shape_of(Pass::forward, S::dtype, {kernel_h, kernel_w}, stride);
  constexpr int columns = shape.columns;
  constexpr int channels = shape.channels;
  using V = Vector<S, channels>;
  constexpr int elements = (columns - 1) * stride + kernel_w;
  constexpr int open = (kernel_h + stride - 1) / stride;  // rows of results that a row adds to
  constexpr int pixel_bytes = lanes * channels * static_cast<int>(sizeof(Type));
  extern __shared__ __align__(kBoxAlignment) char shared[];
  const Grid& grid = p.grid;
  const Geometry& g = grid.g;
  int slice = static_cast<int>(blockIdx.x);
  const int first_channel = grid.groups.short_remainder(slice) * g.width;
  const Place place(grid);
  const int channel = place.vector * channels;

  float filters[kernel_h * kernel_w][channels];
  load_filters<S>(filters, grid, weight, p.mirrored, first_channel, channel,
                  reinterpret_cast<float*>(shared));
  float start[channels];
#pragma unroll
  for (int v = 0; v < channels; ++v)
    start[v] = bias != nullptr && first_channel + channel < grid.channels
                   ? S::widen(bias[first_channel + channel + v])
                   : 0.f;

  const auto load = [&](int step, std::uint32_t stage, std::uint32_t barrier) {
    const Unit unit = unit_of(grid, slice, step);
    expect_bytes(barrier, g.images * g.pixels * pixel_bytes);
    load_box(stage, source, first_channel, unit.source_column(g.w),
             unit.source_row(g.h) + (g.first_step + step) * g.h.dilation, unit.image, barrier);
  };
  rows::Ring<stages_of(Pass::forward, {kernel_h, kernel_w}), decltype(load)> ring(
      shared, g.stage_bytes, units_of(grid, slice) * g.steps, load);
  // Threads past the last image read what they can, for nothing.
  const int line = place.image < g.images ? place.image * g.pixels : 0;
  const int mine = (line + place.strip * columns * stride) * pixel_bytes +
                   channel * static_cast<int>(sizeof(Type));

#pragma unroll 1
  for (int index = slice; index < g.units; index += grid.slices) {
    const Unit unit(grid, index);
    const int left = unit.column_class + (unit.column + place.strip * columns) * g.w.dilation;
    const int image = unit.image + place.image;
    const bool works =
        place.image < g.images && image < grid.batch && first_channel + channel < grid.channels;
    const int width = works ? g.w.result - left : 0;
    const int steps = (min(g.band, unit.rows(grid)) - 1) * stride + kernel_h;
    const Inside rows(grid, unit);
    const int above = min(rows.first, steps);
    const int inside = max(min(rows.last, steps), above);
    Type* to = result + image * grid.result_image +
               (unit.row_class + unit.row * g.h.dilation) * grid.result_row +
               static_cast<std::int64_t>(left) * grid.channels + first_channel + channel;
    // Of the rows of results that are open, the oldest first. Rows of the source above the image
    // add nothing to any of them.
    float sums[open][columns][channels];
#pragma unroll
    for (int k = 0; k < open; ++k)
#pragma unroll
      for (int c = 0; c < columns; ++c)
#pragma unroll
        for (int v = 0; v < channels; ++v)
          sums[k][c][v] = start[v];
    const auto store = [&] {
#pragma unroll
      for (int c = 0; c < columns; ++c) {
        auto* at = reinterpret_cast<Type*>(reinterpret_cast<char*>(to) +
                                           std::uint64_t{grid.column_bytes} * c);
        if (c * g.w.dilation < width) V::store(at, sums[0][c]);
      }
      to += grid.result_step;
    };

    // The row of step i, which is `phase` modulo the stride.
    const auto add_row = [&]<int phase>(std::integral_constant<int, phase>, int i) {
      const std::uint32_t at = ring.wait() + mine;
      float values[elements][channels];
#pragma unroll
      for (int e = 0; e < elements; ++e)
        V::load_shared(values[e], at + e * pixel_bytes);
      ring.leave();
      // In phase 0 a row begins, and all others move on: by the first product that each is given,
      // which costs nothing.
      constexpr int moves = phase == 0 ? 1 : 0;
#pragma unroll
      for (int k = 0; k < open; ++k) {
        const int a = (open - 1 - k) * stride + phase;
        if (a >= kernel_h) continue;
#pragma unroll
        for (int b = 0; b < kernel_w; ++b)
#pragma unroll
          for (int c = 0; c < columns; ++c)
#pragma unroll
            for (int v = 0; v < channels; ++v) {
              const float before = b > 0               ? sums[k][c][v]
                                   : k + moves == open ? start[v]
                                                       : sums[k + moves][c][v];
              sums[k][c][v] = fmaf(values[c * stride + b][v], filters[a * kernel_w + b][v], before);
            }
      }
      if (phase == (kernel_h - 1) % stride && i >= kernel_h - 1) store();
    };
    const int brought = g.first_step + g.steps;
    int i = g.first_step;
    ring.pass(i, above);
#pragma unroll 1
    for (; i < inside; ++i) {
      if (i % stride == 0) {
        add_row(std::integral_constant<int, 0>{}, i);
      } else {
        add_row(std::integral_constant<int, stride - 1>{}, i);
      }
    }
    // Below the image: results that are open still.
#pragma unroll 1
    for (; i < steps; ++i) {
      if (i < brought) {
        ring.wait();
        ring.leave();
      }
      if (i % stride == 0) {
#pragma unroll
        for (int k = 0; k + 1 < open; ++k)
#pragma unroll
          for (int c = 0; c < columns; ++c)
#pragma unroll
            for (int v = 0; v < channels; ++v)
              sums[k][c][v] = sums[k + 1][c][v];
      }
      if (i % stride == (kernel_h - 1) % stride && i >= kernel_h - 1) store();
    }
    ring.pass(i, brought);
  }
#endif
}

template <DType dtype>
void launch_convolve(const Problem& problem, const Plan& plan, const Tensors& tensors,
                     cudaStream_t stream) {
  using S = Scalar<dtype>;
  using Type = typename S::Type;
  const bool backward = problem.pass == Pass::backward_input;
  const Geometry g = geometry(problem, rows::tiles_of(plan));
  const Convolution p{Grid(g, problem, plan), backward};
  const CUtensorMap source = tensor_map<dtype>(
      backward ? tensors.output : tensors.input, problem.batch, g.h.source, g.w.source,
      problem.channels, {g.lanes * g.shape.channels, g.pixels, g.images, g.w.dilation});
  for_filter({g.h.kernel, g.w.kernel}, g.lanes, [&]<int h, int w, int lanes>() {
    const auto kernel = g.h.stride == 1 ? convolve<S, h, w, 1, lanes> : convolve<S, h, w, 2, lanes>;
    allow_shared(kernel, g.shared_bytes);
    kernel<<<static_cast<unsigned>(plan.blocks), plan.threads, g.shared_bytes, stream>>>(
        p, source, static_cast<const Type*>(tensors.weight), static_cast<const Type*>(tensors.bias),
        static_cast<Type*>(backward ? tensors.input : tensors.output));
  });
  check_launch("ring convolve");
}

}  // namespace dwconv::ring
