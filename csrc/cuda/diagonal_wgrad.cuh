// The diagonal family: weight gradient with stride 1. Two rows of the input and two of the output
// gradient come at a time. Of a product, the first operand is the input, 8 shifts x 2 rows by 4
// channels x 4 pixels; the second is the gradient, zero where channels differ, of 4 channels x 2
// rows. A warp keeps the gradients of as many rows as the filter is high, and its sums over all
// units of the block. Warps, and then blocks, are added in a fixed order.
#pragma once

#include "check.cuh"
#include "diagonal.h"
#include "diagonal_lanes.cuh"
#include "reduce.cuh"

namespace dwconv::diagonal {

struct WeightGradient {
  Grid grid;
  Partials partials;
};

// Of a lane, words of two channels as they come, of the 4 pixels of a chunk; and as operands: of
// even channels and of odd ones, pixels in pairs.
struct Chunk {
  std::uint32_t words[4];

  __device__ std::uint32_t pair(int parity, int half) const {
    return __byte_perm(words[2 * half], words[2 * half + 1], parity == 0 ? 0x5410 : 0x7632);
  }
};

// A warp's sums: for rows of the input and the gradient whose numbers, in pairs, differ by q.
template <int kernel_h>
struct Sums {
  float of[2][offsets(kernel_h)][4];  // of even and of odd channels
  float bias[2][4];
};

// Where a sum lies in shared memory, of one warp.
__device__ inline int sum_place(int parity, int q, int row, int grad_row, int channel, int shift) {
  return ((((parity * kMostOffsets + q) * 2 + row) * 2 + grad_row) * 4 + channel) * kShifts + shift;
}

// The sums of the block's warps are added, and go to `put(channel, tap, sum)`.
template <int kernel_h, int kernel_w, typename Put>
__device__ inline void add_warps(const Geometry& g, const Share& share, const Sums<kernel_h>& sums,
                                 bool bias, float* shared, const Put& put) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warps = g.warps / g.vectors;  // of an octet
  const int first = static_cast<int>(threadIdx.x) / 32 * kWarpSums;
  __syncthreads();
#pragma unroll
  for (int parity = 0; parity < 2; ++parity)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int channel = lane % 2 * 2 + i % 2;
      const int grad_row = lane % 4 / 2;
#pragma unroll
      for (int q = 0; q < offsets(kernel_h); ++q)
        shared[first + sum_place(parity, q, i / 2, grad_row, channel, lane / 4)] =
            sums.of[parity][q][i];
      // All rows of that product are the same.
      if (i < 2 && lane < 4)
        shared[first + kBiasSums + (parity * 2 + grad_row) * 4 + channel] = sums.bias[parity][i];
    }
  __syncthreads();
  constexpr int taps = kernel_h * kernel_w;
  const int count = taps + (bias ? 1 : 0);
  for (int i = threadIdx.x; i < g.width * count; i += blockDim.x) {
    const int channel = i / count;
    const int tap = i - channel * count;
    const int octet = channel / kOctet;
    const int parity = channel % 2;
    const int of_octet = channel % kOctet / 2;
    const int a = tap / kernel_w;
    float sum = 0;
    for (int warp = 0; warp < warps; ++warp) {
      const float* from = shared + (warp * g.vectors + octet) * kWarpSums;
      if (tap == taps) {
        for (int grad_row = 0; grad_row < 2; ++grad_row)
          sum += from[kBiasSums + (parity * 2 + grad_row) * 4 + of_octet];
      } else {
        // Row a of the filter is where 2 * q + row - grad_row is a.
        for (int grad_row = 0; grad_row < 2; ++grad_row) {
          const int row = (a + grad_row) % 2;
          const int q = (a + grad_row - row) / 2;
          if (q < offsets(kernel_h))
            sum += from[sum_place(parity, q, row, grad_row, of_octet, tap - a * kernel_w)];
        }
      }
    }
    put(channel, tap, sum);
  }
}

template <typename S, int kernel_h, int kernel_w>
__global__ void __launch_bounds__(kMostSumThreads, 1)
    sum_rows(const __grid_constant__ WeightGradient p, const __grid_constant__ CUtensorMap input,
             const __grid_constant__ CUtensorMap grad_output, float* __restrict__ partial) {
#if __CUDA_ARCH__ >= 900
  using Type = typename S::Type;
  constexpr int window = offsets(kernel_h);
  static_assert(kernel_w <= kShifts && window <= kMostOffsets);
  extern __shared__ __align__(kStageAlignment) char shared[];
  const Grid& grid = p.grid;
  const Geometry& g = grid.g;
  int slice = static_cast<int>(blockIdx.x);
  const int group = grid.groups.short_remainder(slice);
  const int first_channel = group * g.width;
  const Share share(grid);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  let_next_kernel_start();

  const int row_bytes = g.grad_at / 2;
  const int grad_row_bytes = (g.stage_bytes - g.grad_at) / 2;
  const auto load = [&](int step, std::uint32_t stage, std::uint32_t barrier) {
    const Unit unit = unit_of(grid, slice, step);
    expect_bytes(barrier, 2 * g.images * (g.pixels + g.grad_pixels) * g.pixel_bytes);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = 2 * step + i;
      load_box(stage + i * row_bytes, input, first_channel, unit.source_column(g.w),
               unit.source_row(g.h) + row * g.h.dilation, unit.image, barrier, grid.use);
      // Past the rows of the unit there are zeros.
      load_box(stage + g.grad_at + i * grad_row_bytes, grad_output, first_channel,
               unit.column_class + unit.column * g.w.dilation,
               row < g.band ? unit.row_class + (unit.row + row) * g.h.dilation : g.h.result,
               unit.image, barrier, grid.use);
    }
  };
  rows::Ring<kStages, decltype(load), kStageAlignment, true> rows_ring(
      shared, g.stage_bytes, units_of(grid, slice) * g.steps, load);

  // Of the matrices that a lane loads, it gives the address of a row each. A matrix is a pixel of a
  // chunk: of the input its rows are 8 shifts, of the gradient four times each of two rows.
  int image = share.position;
  const int strip = grid.strips.short_remainder(image);
  std::uint32_t at[kChunks], grad_at[kChunks];
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const int pixel = strip * kColumns + 4 * i + lane / 8;
    at[i] = swizzled((image * g.pixels + pixel + lane % 8) * g.pixel_bytes + share.octet * 16,
                     g.pixel_bytes);
    grad_at[i] =
        g.grad_at + lane % 8 / 4 * grad_row_bytes +
        swizzled((image * g.grad_pixels + pixel) * g.pixel_bytes + share.octet * 16, g.pixel_bytes);
  }
  const std::uint32_t mine = lane % 4 == lane / 4 % 4 ? ~0u : 0u;

  Sums<kernel_h> sums{};
#pragma unroll 1
  for (int index = slice; index < g.units; index += grid.slices) {
    const Inside rows(grid, Unit(grid, index));
    // Of the gradients that meet the rows of the input.
    std::uint32_t grads[window][kChunks][2][2] = {};
    // The gradients of a step take the place of the oldest ones.
    const auto add_rows = [&]<int newest>(std::integral_constant<int, newest>, int row) {
      const std::uint32_t stage = rows_ring.wait();
      Chunk input_rows[2][kChunks], grad_rows[kChunks];
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        load_matrices(grad_rows[i].words, stage + grad_at[i]);
#pragma unroll
        for (int j = 0; j < 2; ++j)
          load_matrices(input_rows[j][i].words, stage + j * row_bytes + at[i]);
      }
      rows_ring.leave();
#pragma unroll
      for (int i = 0; i < kChunks; ++i)
#pragma unroll
        for (int parity = 0; parity < 2; ++parity)
#pragma unroll
          for (int half = 0; half < 2; ++half)
            grads[newest][i][parity][half] = grad_rows[i].pair(parity, half) & mine;
      if (p.partials.bias) {
        constexpr std::uint32_t one = S::dtype == DType::float16 ? 0x3c003c00 : 0x3f803f80;
        constexpr std::uint32_t ones[4] = {one, one, one, one};
#pragma unroll
        for (int i = 0; i < kChunks; ++i)
#pragma unroll
          for (int parity = 0; parity < 2; ++parity)
            multiply_add<Type>(sums.bias[parity], ones, grads[newest][i][parity],
                               sums.bias[parity]);
      }
      if (row + 1 < rows.first || row >= rows.last) return;
#pragma unroll
      for (int i = 0; i < kChunks; ++i)
#pragma unroll
        for (int parity = 0; parity < 2; ++parity) {
          const std::uint32_t a[4] = {
              input_rows[0][i].pair(parity, 0), input_rows[1][i].pair(parity, 0),
              input_rows[0][i].pair(parity, 1), input_rows[1][i].pair(parity, 1)};
#pragma unroll
          for (int q = 0; q < window; ++q)
            multiply_add<Type>(sums.of[parity][q], a,
                               grads[(newest - q + window) % window][i][parity],
                               sums.of[parity][q]);
        }
    };
#pragma unroll 1
    for (int row = 0; row < 2 * g.steps;) {
      [&]<int... i>(std::integer_sequence<int, i...>) {
        ((row < 2 * g.steps ? add_rows(std::integral_constant<int, i>{}, row) : void(), row += 2),
         ...);
      }(std::make_integer_sequence<int, window>{});
    }
  }

  float* to = partial + (static_cast<std::int64_t>(group) * grid.slices + slice) * g.width *
                            p.partials.sums();
  auto* batch = reinterpret_cast<float*>(shared + rows::control_bytes(kStages, kStageAlignment));
  add_warps<kernel_h, kernel_w>(g, share, sums, p.partials.bias, batch,
                                [&](int channel, int tap, float sum) {
                                  if (first_channel + channel < grid.channels)
                                    to[channel * p.partials.sums() + tap] = sum;
                                });
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
  const CUtensorMap input =
      tensor_map<dtype>(tensors.input, problem.batch, g.h.source, g.w.source, problem.channels,
                        {g.width, g.pixels, g.images, g.w.dilation, true});
  const CUtensorMap grad_output =
      tensor_map<dtype>(tensors.output, problem.batch, g.h.result, g.w.result, problem.channels,
                        {g.width, g.grad_pixels, g.images, g.w.dilation, true});
  for_kernel(g.h.kernel, [&]<int k>() {
    const auto kernel = sum_rows<S, k, k>;
    allow_shared(kernel, g.shared_bytes);
    kernel<<<static_cast<unsigned>(plan.blocks), plan.threads, g.shared_bytes, stream>>>(
        p, input, grad_output, partial);
  });
  check_launch("diagonal sum_rows");
  launch_add_partials<S>(p.partials, plan.sums_overlap, partial,
                         {static_cast<Type*>(tensors.weight), static_cast<Type*>(tensors.bias)},
                         stream);
}

}  // namespace dwconv::diagonal
