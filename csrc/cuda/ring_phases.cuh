// The ring family: input gradient with stride 2, by phases. Result 2 * q + phase - pad takes only
// the taps of its own phase, 2 * m + phase, from the output gradient at q - m: so a thread has
// steps q, of which each is two results along an axis, and passes over rows of the gradient.
#pragma once

#include <utility>

#include "check.cuh"
#include "ring.cuh"
#include "ring_rows.cuh"

namespace dwconv::ring {

struct Phases {
  Grid grid;
  int result_h, result_w;
  int pad_h, pad_w;
};

template <typename S, int kernel_h, int kernel_w, int lanes>
__global__ void __launch_bounds__(
    kMaxThreads,
    resident_blocks(Pass::backward_input, {kernel_h, kernel_w},
                    shape_of(Pass::backward_input, S::dtype, {kernel_h, kernel_w}, 2), 2))
    scatter(const __grid_constant__ Phases p, const __grid_constant__ CUtensorMap source,
            const typename S::Type* __restrict__ weight, typename S::Type* __restrict__ result) {
#if __CUDA_ARCH__ >= 900
  using Type = typename S::Type;
  constexpr Shape shape = shape_of(Pass::backward_input, S::dtype, {kernel_h, kernel_w}, 2);
  constexpr int columns = shape.columns;
  constexpr int channels = shape.channels;
  using V = Vector<S, channels>;
  constexpr int half_h = (kernel_h + 1) / 2;  // and rows of steps that are open
  constexpr int half_w = (kernel_w + 1) / 2;
  constexpr int elements = columns + half_w - 1;
  constexpr int pixel_bytes = lanes * channels * static_cast<int>(sizeof(Type));
  extern __shared__ __align__(kBoxAlignment) char shared[];
  const Grid& grid = p.grid;
  const Geometry& g = grid.g;
  int slice = static_cast<int>(blockIdx.x);
  const int first_channel = grid.groups.short_remainder(slice) * g.width;
  const Place place(grid);
  const int channel = place.vector * channels;
  float filters[kernel_h * kernel_w][channels];
  load_filters<S>(filters, grid, weight, false, first_channel, channel,
                  reinterpret_cast<float*>(shared));

  const auto load = [&](int step, std::uint32_t stage, std::uint32_t barrier) {
    const Unit unit = unit_of(grid, slice, step);
    expect_bytes(barrier, g.images * g.pixels * pixel_bytes);
    load_box(stage, source, first_channel, unit.source_column(g.w),
             unit.source_row(g.h) + g.first_step + step, unit.image, barrier);
  };
  rows::Ring<stages_of(Pass::backward_input, {kernel_h, kernel_w}), decltype(load)> ring(
      shared, g.stage_bytes, units_of(grid, slice) * g.steps, load);
  // Threads past the last image read what they can, for nothing.
  const int line = place.image < g.images ? place.image * g.pixels : 0;
  const int mine =
      (line + place.strip * columns) * pixel_bytes + channel * static_cast<int>(sizeof(Type));

#pragma unroll 1
  for (int index = slice; index < g.units; index += grid.slices) {
    const Unit unit(grid, index);
    const int left = 2 * (unit.column + place.strip * columns) - p.pad_w;
    const int image = unit.image + place.image;
    const bool works =
        place.image < g.images && image < grid.batch && first_channel + channel < grid.channels;
    const int width = works ? p.result_w : 0;
    const int steps = min(g.band, unit.rows(grid)) - 1 + half_h;
    const Inside rows(grid, unit);
    const int above = min(rows.first, steps);
    const int inside = max(min(rows.last, steps), above);
    int row = 2 * unit.row - p.pad_h;
    Type* to = result + image * grid.result_image + row * grid.result_row +
               static_cast<std::int64_t>(left) * grid.channels + first_channel + channel;
    // Of the rows of steps that are open, the oldest first.
    float sums[half_h][2][2 * columns][channels] = {};
    const auto store = [&] {
#pragma unroll
      for (int phase = 0; phase < 2; ++phase) {
        if (static_cast<unsigned>(row) < static_cast<unsigned>(p.result_h)) {
#pragma unroll
          for (int c = 0; c < 2 * columns; ++c) {
            auto* at = reinterpret_cast<Type*>(reinterpret_cast<char*>(to) +
                                               std::uint64_t{grid.column_bytes} * c);
            if (static_cast<unsigned>(left + c) < static_cast<unsigned>(width))
              V::store(at, sums[0][phase][c]);
          }
        }
        ++row;
        to += grid.result_row;
      }
    };
    const auto move_on = [&] {
#pragma unroll
      for (int k = 0; k < half_h; ++k)
#pragma unroll
        for (int i = 0; i < 4 * columns * channels; ++i) {
          const int phase = i / (2 * columns * channels);
          const int c = i / channels % (2 * columns);
          const int v = i % channels;
          sums[k][phase][c][v] = k + 1 < half_h ? sums[k + 1][phase][c][v] : 0;
        }
    };
    const int brought = g.first_step + g.steps;
    int i = g.first_step;
    ring.pass(i, above);
#pragma unroll 1
    for (; i < inside; ++i) {
      const std::uint32_t at = ring.wait() + mine;
      float values[elements][channels];
#pragma unroll
      for (int e = 0; e < elements; ++e)
        V::load_shared(values[e], at + e * pixel_bytes);
      ring.leave();
      // All steps move on by a row: by the first product that each sum is given.
#pragma unroll
      for (int k = 0; k < half_h; ++k)
#pragma unroll
        for (int phase = 0; phase < 2; ++phase) {
          const int a = 2 * k + phase;
#pragma unroll
          for (int c = 0; c < columns; ++c)
#pragma unroll
            for (int b = kernel_w - 1; b >= 0; --b)
#pragma unroll
              for (int v = 0; v < channels; ++v) {
                const bool first = b >= kernel_w - 2;
                float& sum = sums[k][phase][2 * c + b % 2][v];
                if (first) sum = k + 1 < half_h ? sums[k + 1][phase][2 * c + b % 2][v] : 0;
                if (a < kernel_h)
                  sum = fmaf(values[c + half_w - 1 - b / 2][v], filters[a * kernel_w + b][v], sum);
              }
        }
      if (i >= half_h - 1) store();
    }
    // Below the gradient: steps that are open still.
#pragma unroll 1
    for (; i < steps; ++i) {
      if (i < brought) {
        ring.wait();
        ring.leave();
      }
      move_on();
      if (i >= half_h - 1) store();
    }
    ring.pass(i, brought);
  }
#endif
}

template <DType dtype>
void launch_scatter(const Problem& problem, const Plan& plan, const Tensors& tensors,
                    cudaStream_t stream) {
  using S = Scalar<dtype>;
  using Type = typename S::Type;
  const Geometry g = geometry(problem, rows::tiles_of(plan));
  Phases p{.grid = Grid(g, problem, plan),
           .result_h = static_cast<int>(problem.h.input),
           .result_w = static_cast<int>(problem.w.input),
           .pad_h = static_cast<int>(problem.h.pad_before),
           .pad_w = static_cast<int>(problem.w.pad_before)};
  p.grid.result_row = problem.channels * problem.w.input;
  p.grid.result_image = p.grid.result_row * problem.h.input;
  const CUtensorMap source =
      tensor_map<dtype>(tensors.output, problem.batch, g.h.source, g.w.source, problem.channels,
                        {g.lanes * g.shape.channels, g.pixels, g.images, 1});
  for_filter({static_cast<int>(problem.h.kernel), static_cast<int>(problem.w.kernel)}, g.lanes,
             [&]<int h, int w, int lanes>() {
               const auto kernel = scatter<S, h, w, lanes>;
               allow_shared(kernel, g.shared_bytes);
               kernel<<<static_cast<unsigned>(plan.blocks), plan.threads, g.shared_bytes, stream>>>(
                   p, source, static_cast<const Type*>(tensors.weight),
                   static_cast<Type*>(tensors.input));
             });
  check_launch("ring scatter");
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

}  // namespace dwconv::ring
