// The dense family's kernels.
#pragma once

#include "../families/dense.h"
#include "dense.h"
#include "image_blocks.cuh"
#include "launch_units.cuh"
#include "mma.cuh"

namespace dwconv::dense {

// Geometry as kernels want it. A unit's image is a block of images.
struct Grid : UnitGrid<Geometry> {
  SmallDivisor unit_channels, taps, apart_w, source_columns, result_columns;
  bool mirrored;
  Use use;

  Grid(const Geometry& geometry, const Problem& problem, const Plan& plan)
      : UnitGrid(geometry, problem, plan),
        unit_channels(g.channels),
        taps(g.taps()),
        apart_w(g.apart_w),
        source_columns(g.w.source),
        result_columns(g.w.result),
        mirrored(problem.pass == Pass::backward_input),
        use(use_of(plan)) {}

  // Where a channel's plane of an image is in shared memory, whose run is at `run`.
  template <typename Type>
  __device__ std::uint32_t place(Type* tensor, const Unit& unit, int image, int channel, int plane,
                                 std::uint32_t run) const {
    const unsigned first =
        static_cast<unsigned>(first_plane(unit)) + static_cast<unsigned>(image) * channels;
    const auto global = static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(tensor));
    return run + ((global + 2u * first * plane) & 15) + 2 * channel * plane;
  }
  // The filters of a unit's channels.
  template <typename Type>
  __device__ Run<Type> filters(Type* weight, const Unit& unit, char* to) const {
    const int count = g.h.kernel * g.w.kernel;
    return {weight + first_channel(unit) * count, to, channels_of(unit) * count};
  }
};

struct Convolution {
  Grid grid;
};

// The taps of a unit's channels, by how far element and result are apart.
__device__ inline void spread_taps(std::uint16_t* to, const std::uint16_t* filters,
                                   const Grid& grid) {
  const Geometry& g = grid.g;
  const int count = g.h.kernel * g.w.kernel;
  for (int i = threadIdx.x; i < g.channels * g.taps(); i += blockDim.x) {
    int channel = i;
    int h = grid.taps.remainder(channel);
    const int w = grid.apart_w.remainder(h);
    // A result of row r reads row r - pad + tap.
    const int row = h - (g.h.result - 1) + g.h.pad, column = w - (g.w.result - 1) + g.w.pad;
    const bool there = static_cast<unsigned>(row) < static_cast<unsigned>(g.h.kernel) &&
                       static_cast<unsigned>(column) < static_cast<unsigned>(g.w.kernel);
    const int tap = row * g.w.kernel + column;
    to[i] = there ? filters[channel * count + (grid.mirrored ? count - 1 - tap : tap)]
                  : std::uint16_t{0};
  }
}

// A warp's columns of a channel's matrix, as a lane has them.
template <Shape shape>
struct Matrix {
  std::uint32_t words[shape.steps()][shape.blocks()][2];

  // The first step is of the image's last elements, of which `masks` say which there are, in either
  // half; the others are of those before, from the first on.
  __device__ void load(const std::uint16_t* taps, const Grid& grid, int first_result,
                       const std::uint32_t (&masks)[2]) {
    const Geometry& g = grid.g;
    const int lane = threadIdx.x % 32;
    // From the tap of an element and the first result to that of another.
    int results[shape.blocks()];
#pragma unroll
    for (int n = 0; n < shape.blocks(); ++n) {
      int row = first_result + n * kBlock + lane / 4;
      if (row >= g.result_plane) row = 0;
      const int column = grid.result_columns.remainder(row);
      results[n] = (g.h.result - 1 - row) * g.apart_w + g.w.result - 1 - column;
    }
#pragma unroll
    for (int step = 0; step < shape.steps(); ++step) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        int at[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int first = step == 0 ? (g.steps - 1) * kStep : (step - 1) * kStep;
          int row = min(first + half * 8 + lane % 4 * 2 + i, g.source_plane - 1);
          const int column = grid.source_columns.remainder(row);
          at[i] = row * g.apart_w + column;
        }
#pragma unroll
        for (int n = 0; n < shape.blocks(); ++n) {
          const std::uint32_t first = taps[results[n] + at[0]];
          const std::uint32_t second = taps[results[n] + at[1]];
          const std::uint32_t both = __byte_perm(first, second, 0x5410);
          words[step][n][half] = step == 0 ? both & masks[half] : both;
        }
      }
    }
  }
};

template <bool even>
__device__ inline std::uint32_t load_two(std::uint32_t at) {
  if constexpr (even) return load_shared_word(at);
  return __byte_perm(load_shared_element(at), load_shared_element(at + 2), 0x5410);
}

// Two results of which so many are there.
template <bool even>
__device__ inline void store_two(std::uint32_t at, std::uint32_t words, int there) {
  if (even) {
    if (there > 0) asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(words) : "memory");
    return;
  }
  const auto first = static_cast<std::uint16_t>(words),
             second = static_cast<std::uint16_t>(words >> 16);
  if (there > 0) asm volatile("st.shared.u16 [%0], %1;" ::"r"(at), "h"(first) : "memory");
  if (there > 1) asm volatile("st.shared.u16 [%0], %1;" ::"r"(at + 2), "h"(second) : "memory");
}

template <typename S, bool small, bool even>
__global__ void __launch_bounds__(32 * Shape{small, even}.warps(), 1)
    convolve(const __grid_constant__ Convolution p, const typename S::Type* __restrict__ source,
             const typename S::Type* __restrict__ weight, const typename S::Type* __restrict__ bias,
             typename S::Type* __restrict__ result) {
#if __CUDA_ARCH__ >= 800
  using Type = typename S::Type;
  constexpr Shape shape{small, even};
  extern __shared__ __align__(16) char shared[];
  const Grid& grid = p.grid;
  const Geometry& g = grid.g;
  const int lane = threadIdx.x % 32;
  // Warps of neighbouring numbers share a multiprocessor's quarters: all jobs in each of them.
  int job = static_cast<int>(threadIdx.x) / 32;
  const int channel = grid.unit_channels.remainder(job);
  const int first_result = job * shape.blocks() * kBlock;
  auto* const taps = reinterpret_cast<std::uint16_t*>(shared + g.taps_at);
  // Of the last product's elements, those that the image has: of its two halves.
  std::uint32_t masks[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int left = g.source_plane - (g.steps - 1) * kStep - half * 8 - lane % 4 * 2;
    masks[half] = left >= 2 ? 0xffffffffu : left == 1 ? 0xffffu : 0u;
  }

  const auto load = [&](RunLoader& loader, int slot, char* stage, const Unit& unit) {
    loader.load(slot, grid.use, [&](int i) {
      return i < kImages
                 ? run_of_image(grid, source, unit, i, g.source_plane, stage + i * g.source_step)
                 : grid.filters(weight, unit, stage + g.filters_at);
    });
  };
  Matrix<shape> matrix;
  float first_sum = 0;
  int group = -1;
  Pipeline pipeline(grid, shared, kImages + 1, load);
  for (; pipeline.more(); pipeline.advance()) {
    const Unit unit = pipeline.unit();
    pipeline.wait_for_place();
    const char* stage = pipeline.wait();
    if (unit.group != group) {
      group = unit.group;
      const auto filters = grid.filters(weight, unit, nullptr);
      spread_taps(taps,
                  reinterpret_cast<const std::uint16_t*>(stage + g.filters_at) +
                      misalignment(filters.global),
                  grid);
      __syncthreads();
      matrix.load(taps + channel * g.taps(), grid, first_result, masks);
      if (bias != nullptr && channel < grid.channels_of(unit))
        first_sum = S::widen(bias[grid.first_channel(unit) + channel]);
    }
    if (channel < grid.channels_of(unit)) {
      // Images lane / 4 and 8 more.
      std::uint32_t at[2], to[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int image = lane / 4 + 8 * i;
        at[i] = grid.place(source, unit, image, channel, g.source_plane,
                           shared_address(stage) + image * g.source_step) +
                lane % 4 * 4;
        to[i] = grid.place(result, unit, image, channel, g.result_plane,
                           shared_address(shared) + pipeline.results_at() + image * g.result_step) +
                lane % 4 * 4 + 2 * first_result;
      }
      float sums[shape.blocks()][4];
#pragma unroll
      for (int n = 0; n < shape.blocks(); ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          sums[n][i] = first_sum;
#pragma unroll
      for (int step = 0; step < shape.steps(); ++step) {
        if (step >= g.steps) break;
        std::uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int first = step == 0 ? g.steps - 1 : step - 1;
          words[i] = load_two<even>(at[i % 2] + first * 2 * kStep + i / 2 * 16);
          if (step == 0) words[i] &= masks[i / 2];
        }
#pragma unroll
        for (int n = 0; n < shape.blocks(); ++n)
          multiply_add<Type>(sums[n], words, matrix.words[step][n], sums[n]);
      }
      const int left = g.result_plane - first_result - lane % 4 * 2;  // results from the first on
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int n = 0; n < shape.blocks(); ++n)
          store_two<even>(to[i] + n * 2 * kBlock,
                          round_pair<Type>(sums[n][2 * i], sums[n][2 * i + 1]), left - n * kBlock);
    }
    publish();
    __syncthreads();
    send_runs<Type>(kImages, [&](int i) {
      return run_of_image(grid, result, unit, i, g.result_plane,
                          shared + pipeline.results_at() + i * g.result_step);
    });
  }
  wait_until_sent<0>();
#endif
}

template <typename S>
using Kernel = void (*)(Convolution, const typename S::Type*, const typename S::Type*,
                        const typename S::Type*, typename S::Type*);

template <typename S>
Kernel<S> choose(const Shape& shape) {
  if (shape.small) return shape.even ? convolve<S, true, true> : convolve<S, true, false>;
  return shape.even ? convolve<S, false, true> : convolve<S, false, false>;
}

template <DType dtype>
void launch_convolve(const Problem& problem, const Plan& plan, const Tensors& tensors,
                     cudaStream_t stream) {
  using S = Scalar<dtype>;
  const Geometry g = geometry(problem, plan.tiling);
  Shape shape = g.shape;
  if (!begin_with(4, tensors)) shape.even = false;
  launch_convolution<S>("dense convolve", choose<S>(shape), Convolution{Grid(g, problem, plan)},
                        problem, plan, tensors, stream);
}

}  // namespace dwconv::dense
