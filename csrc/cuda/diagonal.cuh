// The diagonal family: forward with stride 1 and 2, input gradient with stride 1.
#pragma once

#include "check.cuh"
#include "diagonal.h"
#include "diagonal_lanes.cuh"
#include "diagonal_results.cuh"

namespace dwconv::diagonal {

struct Convolution {
  Grid grid;
  bool mirrored;  // turn the filters round
};

// A warp's filters as second operands: pairs of taps of a filter row, of even and of odd channels.
// Lane (g, t) has column g of rows 2t and 2t + 1: channel pair t of the pixels, channel pair g / 2
// and result g % 2 of the position.
template <typename S, int kernel_h, int kernel_w, int stride, int pairs>
__device__ inline void load_filters(std::uint32_t (&filters)[2][kernel_h][pairs], const Grid& grid,
                                    const typename S::Type* weight, bool mirrored, int first,
                                    int octet, char* shared) {
  using Type = typename S::Type;
  constexpr int taps = kernel_h * kernel_w;
  const auto* staged = reinterpret_cast<const Type*>(shared);
  // As many channels as fill 16 bytes have filters that do.
  const int count = min(grid.g.width, grid.channels - first) * taps / kOctet;
  const auto* from =
      reinterpret_cast<const uint4*>(weight + static_cast<std::int64_t>(first) * taps);
  for (int i = threadIdx.x; i < count; i += blockDim.x)
    reinterpret_cast<uint4*>(shared)[i] = from[i];
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int column = lane / 4;
  const int channel = octet * kOctet + lane % 4 * 2;
  const bool mine = column / 2 == lane % 4 && first + channel < grid.channels;
#pragma unroll
  for (int parity = 0; parity < 2; ++parity)
#pragma unroll
    for (int a = 0; a < kernel_h; ++a)
#pragma unroll
      for (int i = 0; i < pairs; ++i) {
        typename S::Type two[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int b = 2 * i + j - column % 2 * stride;
          const int tap = a * kernel_w + b;
          const bool there = mine && 0 <= b && b < kernel_w;
          two[j] = there ? staged[(channel + parity) * taps + (mirrored ? taps - 1 - tap : tap)]
                         : S::round(0.f);
        }
        memcpy(&filters[parity][a][i], two, 4);
      }
  __syncthreads();
}

template <typename S, int kernel_h, int kernel_w, int stride>
__global__ void __launch_bounds__(most_threads(Filter{kernel_h, kernel_w}), 1)
    convolve(const __grid_constant__ Convolution p, const __grid_constant__ CUtensorMap source,
             const __grid_constant__ CUtensorMap result,
             const typename S::Type* __restrict__ weight,
             const typename S::Type* __restrict__ bias) {
#if __CUDA_ARCH__ >= 900
  using Type = typename S::Type;
  constexpr int pairs = pixel_pairs(kernel_w, stride);
  constexpr int open = (kernel_h + stride - 1) / stride;  // rows of results that a row adds to
  constexpr int together = interleave(stride);
  // Whether the next row is brought while the tensor cores are at work on one. With 7 rows there
  // are too few registers: N128 C96 56x56 took 77.5 us, and 82 so.
  constexpr bool ahead = kernel_h < 7;
  extern __shared__ __align__(kStageAlignment) char shared[];
  const Grid& grid = p.grid;
  const Geometry& g = grid.g;
  int slice = static_cast<int>(blockIdx.x);
  const int first_channel = grid.groups.short_remainder(slice) * g.width;
  const Share share(grid);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int channel = share.octet * kOctet + lane % 4 * 2;

  std::uint32_t filters[2][kernel_h][pairs];
  load_filters<S, kernel_h, kernel_w, stride, pairs>(filters, grid, weight, p.mirrored,
                                                     first_channel, share.octet, shared);
  const bool has_channel = first_channel + channel < grid.channels;
  float start[2];
#pragma unroll
  for (int v = 0; v < 2; ++v)
    start[v] = bias != nullptr && has_channel ? S::widen(bias[first_channel + channel + v]) : 0.f;

  constexpr int control = rows::control_bytes(kStages, kStageAlignment);
  Results results(shared_address(shared + kResultBarriers),
                  shared_address(shared + control + kStages * g.stage_bytes), g.place_bytes);
  const auto load = [&](int step, std::uint32_t stage, std::uint32_t barrier) {
    const Unit unit = unit_of(grid, slice, step);
    expect_bytes(barrier, g.images * g.pixels * g.pixel_bytes);
    load_box(stage, source, first_channel, unit.source_column(g.w),
             unit.source_row(g.h) + (g.first_step + step) * g.h.dilation, unit.image, barrier);
  };
  rows::Ring<kStages, decltype(load), kStageAlignment, true> rows_ring(
      shared, g.stage_bytes, units_of(grid, slice) * g.steps, load);

  // Of the matrices that a lane loads, it gives the address of a row each: positions 0 to 7 and 8
  // to 15, of a pair's first pixel and of its second.
  std::uint32_t at[pairs];
  {
    const Position mine = Position::of<together>(grid, share.position * kPositions + lane % 16);
    const int pixel = mine.image * g.pixels + mine.strip * 2 * stride + lane / 16;
#pragma unroll
    for (int i = 0; i < pairs; ++i)
      at[i] = swizzled((pixel + 2 * i) * g.pixel_bytes + share.octet * 16, g.pixel_bytes);
  }
  // Of the matrices of results that it stores: of these positions, the first column and the second.
  std::uint32_t result_at;
  {
    const Position mine = Position::of<together>(grid, share.position * kPositions + lane % 16);
    const int pixel = (mine.image * g.strips + mine.strip) * 2 + lane / 16;
    result_at = swizzled(pixel * g.pixel_bytes + share.octet * 16, g.pixel_bytes);
  }
  int sent_column = 0, sent_row = 0, sent_image = 0;
  const auto send = [&](std::uint32_t place) {
    store_box(result, first_channel, sent_column, sent_row, sent_image, place);
  };

#pragma unroll 1
  for (int index = slice; index < g.units; index += grid.slices) {
    const Unit unit(grid, index);
    const int steps = (min(g.band, unit.rows(grid)) - 1) * stride + kernel_h;
    const Inside rows(grid, unit);
    const int above = min(rows.first, steps);
    const int inside = max(min(rows.last, steps), above);
    int row = unit.row_class + unit.row * g.h.dilation;
    // Of the rows of results that are open, the oldest first; of even and of odd channels.
    float sums[open][2][4] = {};
    const auto store = [&](bool room) {
      std::uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int j = i % 2 * 2 + i / 2;  // of position i % 2, column i / 2
        words[i] = round_pair<Type>(sums[0][0][j] + start[0], sums[0][1][j] + start[1]);
      }
      store_matrices(results.wait(room) + result_at, words);
      results.leave(send);
      sent_column = unit.column_class + unit.column * g.w.dilation;
      sent_row = row;
      sent_image = unit.image;
      row += g.h.dilation;
    };
    Pixels<pairs> pixels;
    bool there = false;
    const auto bring = [&] {
      const std::uint32_t stage = rows_ring.wait(there);
      pixels.load(at, stage);
      rows_ring.leave();
      there = rows_ring.test();
    };
    // The row of step i, which is `phase` modulo the stride.
    const auto add_row = [&]<int phase>(std::integral_constant<int, phase>, int i) {
      if constexpr (!ahead) bring();
      const bool room = results.test();
      const auto operands = pixels.operands();
      // In phase 0 a row begins, and all others move on: by the first product that each is given,
      // which costs nothing.
      constexpr int moves = phase == 0 ? 1 : 0;
#pragma unroll
      for (int of = 0; of < (pairs + 1) / 2; ++of) {
#pragma unroll
        for (int parity = 0; parity < 2; ++parity)
#pragma unroll
          for (int k = 0; k < open; ++k) {
            const int row = (open - 1 - k) * stride + phase;
            if (row >= kernel_h) continue;
            float before[4];
#pragma unroll
            for (int j = 0; j < 4; ++j)
              before[j] = of > 0              ? sums[k][parity][j]
                          : k + moves == open ? 0.f
                                              : sums[k + moves][parity][j];
            operands.template multiply<Type>(sums[k][parity], parity, of, filters[parity][row],
                                             before);
          }
        if (ahead && of == 0 && i + 1 < inside) bring();
      }
      if (phase == (kernel_h - 1) % stride && i >= kernel_h - 1) store(room);
    };
    const int brought = g.first_step + g.steps;
    int i = g.first_step;
    rows_ring.pass(i, above);
    if (ahead && i < inside) bring();
    there = rows_ring.test();
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
        rows_ring.wait();
        rows_ring.leave();
      }
      if (i % stride == 0) {
#pragma unroll
        for (int k = 0; k + 1 < open; ++k)
#pragma unroll
          for (int j = 0; j < 8; ++j)
            sums[k][j / 4][j % 4] = sums[k + 1][j / 4][j % 4];
      }
      if (i % stride == (kernel_h - 1) % stride && i >= kernel_h - 1) store(false);
    }
    rows_ring.pass(i, brought);
  }
  results.finish(send);
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
  const CUtensorMap result = tensor_map<dtype>(
      backward ? tensors.input : tensors.output, problem.batch, g.h.result, g.w.result,
      problem.channels, {g.width, 2 * g.strips, g.images, g.w.dilation, true});
  const CUtensorMap source = tensor_map<dtype>(
      backward ? tensors.output : tensors.input, problem.batch, g.h.source, g.w.source,
      problem.channels, {g.lanes * kOctet, g.pixels, g.images, g.w.dilation, true});
  const auto start = [&](auto kernel) {
    allow_shared(kernel, g.shared_bytes);
    kernel<<<static_cast<unsigned>(plan.blocks), plan.threads, g.shared_bytes, stream>>>(
        p, source, result, static_cast<const Type*>(tensors.weight),
        static_cast<const Type*>(tensors.bias));
  };
  for_kernel(g.h.kernel, [&]<int k>() {
    if constexpr (is_compiled(Pass::forward, Filter{k, k}, 2)) {
      if (g.h.stride == 2) return start(convolve<S, k, k, 2>);
    }
    start(convolve<S, k, k, 1>);
  });
  check_launch("diagonal convolve");
}

}  // namespace dwconv::diagonal
