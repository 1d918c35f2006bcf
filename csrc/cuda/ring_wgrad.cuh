// The ring family: weight gradient with stride 1 and 2. Rows of the input and of the output
// gradient come side by side; a thread keeps the gradients of as many rows as the filter is high,
// and its sums over all units of the block. The threads of a block, and then the blocks, are added
// in a fixed order.
#pragma once

#include <utility>

#include "check.cuh"
#include "reduce.cuh"
#include "ring.h"
#include "ring_rows.cuh"
#include "slot_sums.cuh"

namespace dwconv::ring {

struct WeightGradient {
  Grid grid;
  Partials partials;
};

template <typename S, int kernel_h, int kernel_w, int stride, int lanes>
__global__ void __launch_bounds__(kMaxThreads,
                                  resident_blocks(Pass::backward_weight, {kernel_h, kernel_w},
                                                  shape_of(Pass::backward_weight, S::dtype,
                                                           {kernel_h, kernel_w}, stride),
                                                  stride))
    sum_rows(const __grid_constant__ WeightGradient p, const __grid_constant__ CUtensorMap input,
             const __grid_constant__ CUtensorMap grad_output, float* __restrict__ partial) {
#if __CUDA_ARCH__ >= 900
  constexpr Shape shape = shape_of(Pass::backward_weight, S::dtype, {kernel_h, kernel_w}, stride);
  constexpr int columns = shape.columns;
  constexpr int channels = shape.channels;
  using V = Vector<S, channels>;
  constexpr int elements = (columns - 1) * stride + kernel_w;
  constexpr int open = (kernel_h + stride - 1) / stride;  // rows of gradients that a row meets
  constexpr int bytes = static_cast<int>(sizeof(typename S::Type));
  constexpr int pixel_bytes = lanes * channels * bytes;
  constexpr int stages = stages_of(Pass::backward_weight, {kernel_h, kernel_w});
  extern __shared__ __align__(kBoxAlignment) char shared[];
  const Grid& grid = p.grid;
  const Geometry& g = grid.g;
  int slice = static_cast<int>(blockIdx.x);
  const int group = grid.groups.short_remainder(slice);
  const int first_channel = group * g.width;
  const Place place(grid);
  const int channel = place.vector * channels;
  let_next_kernel_start();

  const auto load = [&](int step, std::uint32_t stage, std::uint32_t barrier) {
    const Unit unit = unit_of(grid, slice, step);
    const bool begins = step % stride == 0;
    expect_bytes(barrier, g.images * (g.pixels + (begins ? g.grad_pixels : 0)) * pixel_bytes);
    load_box(stage, input, first_channel, unit.source_column(g.w),
             unit.source_row(g.h) + step * g.h.dilation, unit.image, barrier, grid.use);
    // Past the rows of the unit there are zeros.
    if (begins) {
      const int row = unit.row_class + (unit.row + step / stride) * g.h.dilation;
      load_box(stage + g.grad_at, grad_output, first_channel,
               unit.column_class + unit.column * g.w.dilation,
               step / stride < g.band ? row : g.h.result, unit.image, barrier, grid.use);
    }
  };
  rows::Ring<stages, decltype(load)> ring(shared, g.stage_bytes, units_of(grid, slice) * g.steps,
                                          load);
  // Threads past the last image read what they can, for nothing.
  const int image = place.image < g.images ? place.image : 0;
  const int mine =
      (image * g.pixels + place.strip * columns * stride) * pixel_bytes + channel * bytes;
  const int my_grads =
      g.grad_at + (image * g.grad_pixels + place.strip * columns) * pixel_bytes + channel * bytes;
  float sums[kernel_h * kernel_w][channels] = {};
  float bias_sum[1][channels] = {};

#pragma unroll 1
  for (int index = slice; index < g.units; index += grid.slices) {
    const Inside rows(grid, Unit(grid, index));
    // Rows of gradients that meet the row of the input, the newest first.
    float grads[open][columns][channels] = {};
    const auto add_row = [&]<int phase>(std::integral_constant<int, phase>, int i) {
      const std::uint32_t at = ring.wait();
      float values[elements][channels];
#pragma unroll
      for (int e = 0; e < elements; ++e)
        V::load_shared(values[e], at + mine + e * pixel_bytes);
      if constexpr (phase == 0) {
#pragma unroll
        for (int k = open - 1; k > 0; --k)
#pragma unroll
          for (int c = 0; c < columns; ++c)
#pragma unroll
            for (int v = 0; v < channels; ++v)
              grads[k][c][v] = grads[k - 1][c][v];
#pragma unroll
        for (int c = 0; c < columns; ++c)
          V::load_shared(grads[0][c], at + my_grads + c * pixel_bytes);
      }
      ring.leave();
      if (i >= rows.first && i < rows.last) {
#pragma unroll
        for (int k = 0; k < open; ++k) {
          const int a = k * stride + phase;
          if (a >= kernel_h) continue;
#pragma unroll
          for (int c = 0; c < columns; ++c)
#pragma unroll
            for (int b = 0; b < kernel_w; ++b)
#pragma unroll
              for (int v = 0; v < channels; ++v) {
                float& sum = sums[a * kernel_w + b][v];
                sum = fmaf(values[c * stride + b][v], grads[k][c][v], sum);
              }
        }
      }
      if (phase == 0 && p.partials.bias) {
#pragma unroll
        for (int c = 0; c < columns; ++c)
#pragma unroll
          for (int v = 0; v < channels; ++v)
            bias_sum[0][v] += grads[0][c][v];
      }
    };
#pragma unroll 1
    for (int i = 0; i < g.steps; i += stride) {
      add_row(std::integral_constant<int, 0>{}, i);
      if constexpr (stride == 2) {
        if (i + 1 < g.steps) add_row(std::integral_constant<int, 1>{}, i + 1);
      }
    }
  }

  const Slots slots{g.width, g.images * g.strips, 1};
  const bool holds = place.image < g.images;
  auto* batch = reinterpret_cast<float*>(shared + rows::control_bytes(stages));
  float* to = partial + (static_cast<std::int64_t>(group) * grid.slices + slice) * g.width *
                            p.partials.sums();
  const auto put = [&](int at, int index, float sum) {
    if (first_channel + at < grid.channels) to[at * p.partials.sums() + index] = sum;
  };
  add_slots<kSumBatch>(slots, batch, sums, holds,
                       [&](int at, int, int index, float sum) { put(at, index, sum); });
  if (p.partials.bias) {
    add_slots<kSumBatch>(slots, batch, bias_sum, holds,
                         [&](int at, int, int, float sum) { put(at, kernel_h * kernel_w, sum); });
  }
#endif
}

template <DType dtype>
void launch_sum_rows(const Problem& problem, const Plan& plan, const Tensors& tensors,
                     cudaStream_t stream) {
  using S = Scalar<dtype>;
  using Type = typename S::Type;
  const Geometry g = geometry(problem, rows::tiles_of(plan));
  const WeightGradient p{Grid(g, problem, plan), partials_of(problem, g, plan.blocks)};
  auto* partial = static_cast<float*>(tensors.workspace);
  const int box = g.lanes * g.shape.channels;
  const CUtensorMap input =
      tensor_map<dtype>(tensors.input, problem.batch, g.h.source, g.w.source, problem.channels,
                        {box, g.pixels, g.images, g.w.dilation});
  const CUtensorMap grad_output =
      tensor_map<dtype>(tensors.output, problem.batch, g.h.result, g.w.result, problem.channels,
                        {box, g.grad_pixels, g.images, g.w.dilation});
  for_filter({g.h.kernel, g.w.kernel}, g.lanes, [&]<int h, int w, int lanes>() {
    const auto kernel = g.h.stride == 1 ? sum_rows<S, h, w, 1, lanes> : sum_rows<S, h, w, 2, lanes>;
    allow_shared(kernel, g.shared_bytes);
    kernel<<<static_cast<unsigned>(plan.blocks), plan.threads, g.shared_bytes, stream>>>(
        p, input, grad_output, partial);
  });
  check_launch("ring sum_rows");
  launch_add_partials<S>(p.partials, plan.sums_overlap, partial,
                         {static_cast<Type*>(tensors.weight), static_cast<Type*>(tensors.bias)},
                         stream);
}

}  // namespace dwconv::ring
