// The columns family: weight gradient.
#pragma once

#include <iterator>
#include <utility>

#include "../families/columns_wgrad.h"
#include "bulk.cuh"
#include "columns_launch.cuh"
#include "columns_turn.cuh"
#include "slice_sums.cuh"
#include "uniform.cuh"

namespace dwconv::columns {

struct WeightGradient {
  SumGeometry g;
  Partials partials;
  int channels, batch;
  int slices;
  int kernel_w;  // of the whole filter
  Rows source, result;
  Divisor tap_tiles, slice_count;
  SmallDivisor parts;

  WeightGradient(const SumGeometry& geometry, const Problem& problem, const Plan& plan,
                 const Tensors& tensors)
      : g(geometry),
        partials(partials_of(problem, plan.slices)),
        channels(static_cast<int>(problem.channels)),
        batch(static_cast<int>(problem.batch)),
        slices(static_cast<int>(plan.slices)),
        kernel_w(static_cast<int>(problem.w.kernel)),
        source(rows_of(tensors, g.w.source)),
        result(rows_of(tensors, g.w.result)),
        tap_tiles(g.tap_tiles),
        slice_count(plan.slices),
        parts(g.parts) {}

  __device__ int images_of(int unit) const { return min(g.images, batch - unit * g.images); }
  // A channel's plane of an image of a unit; none where there is no such image.
  template <typename Type>
  __device__ Run<Type> plane(Type* tensor, int unit, int image, int channel, bool source,
                             char* to) const {
    const int size = source ? g.h.source * g.w.source : g.h.result * g.w.result;
    const std::int64_t first =
        static_cast<std::int64_t>(unit * g.images + image) * channels + channel;
    return {tensor + first * size, to, image < images_of(unit) ? size : 0};
  }
  template <typename Type>
  __device__ Run<Type> source_plane(Type* input, int unit, int image, int channel,
                                    char* shared) const {
    return plane(input, unit, image, channel, true, shared + image * g.source_step);
  }
  template <typename Type>
  __device__ Run<Type> result_plane(Type* grad, int unit, int image, int channel,
                                    char* shared) const {
    return plane(grad, unit, image, channel, false, shared + g.grad_at + image * g.result_step);
  }
};

template <typename Type>
__device__ inline std::uint32_t first_of(const Run<Type>& run) {
  return shared_address(run.shared) + 2 * misalignment(run.global);
}

// A warp's sums: rows of the image times rows of the output gradient, for some columns of the
// filter.
template <typename S, SumShape shape>
struct Sums {
  static constexpr int kSteps = shape.steps;
  static constexpr int kTaps = shape.taps;
  static constexpr int kColumn = Shape{shape.steps}.column_bytes();

  float sums[kTaps][kSteps][2 * kSteps][4];

  __device__ void clear() {
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap)
#pragma unroll
      for (int m = 0; m < kSteps; ++m)
#pragma unroll
        for (int n = 0; n < 2 * kSteps; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            sums[tap][m][n][i] = 0;
  }

  // One product of columns of the images at `source`, where the warp's first tap is, and of the
  // output gradients at `grad`.
  __device__ void add(std::uint32_t source, std::uint32_t grad) {
    std::uint32_t grads[2 * kSteps][2];
#pragma unroll
    for (int n = 0; n < kSteps; ++n) {
      std::uint32_t four[4];
      load_transposed(four, grad + 2 * kStep * n);
      grads[2 * n][0] = four[0];
      grads[2 * n][1] = four[1];
      grads[2 * n + 1][0] = four[2];
      grads[2 * n + 1][1] = four[3];
    }
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) {
#pragma unroll
      for (int m = 0; m < kSteps; ++m) {
        std::uint32_t rows[4];
        load_transposed(rows, source + tap * kColumn + 2 * kStep * m);
#pragma unroll
        for (int n = 0; n < 2 * kSteps; ++n) {
          if (m - n / 2 > shape.reach || n / 2 - m > shape.reach) continue;
          multiply_add<typename S::Type>(sums[tap][m][n], rows, grads[n], sums[tap][m][n]);
        }
      }
    }
  }

  // Adds the diagonals to the gradients of the warp's taps at `to`, of `rows` rows each, of which
  // row r is `pad` before rows that are as far apart.
  __device__ void flush(float* to, float* square, int rows, int pad) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) {
#pragma unroll
      for (int apart = -shape.reach; apart <= shape.reach; ++apart) {
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float sum = 0;
#pragma unroll
            for (int m = 0; m < kSteps; ++m) {
              const int n = m - apart;
              if (n >= 0 && n < kSteps) sum += sums[tap][m][2 * n + half][i];
            }
            square[(lane / 4 + i / 2 * 8) * (kStep + 1) + half * 8 + (lane & 3) * 2 + i % 2] = sum;
          }
        __syncwarp();
        const int row = apart * kStep + lane - (kStep - 1) + pad;
        if (lane < 2 * kStep - 1 && row >= 0 && row < rows) {
          float sum = 0;
#pragma unroll
          for (int n = 0; n < kStep; ++n) {
            const int m = n + lane - (kStep - 1);
            if (m >= 0 && m < kStep) sum += square[m * (kStep + 1) + n];
          }
          to[tap * rows + row] += sum;
        }
        __syncwarp();
      }
    }
    clear();
  }
};

template <typename S, int which>
__global__ void __launch_bounds__(kMostSumThreads, kSumShapes[which].resident())
    sum_products(const __grid_constant__ WeightGradient p,
                 const typename S::Type* __restrict__ input,
                 const typename S::Type* __restrict__ grad_output, float* __restrict__ partial,
                 const Gradients<S> result) {
#if __CUDA_ARCH__ >= 800
  constexpr SumShape shape = kSumShapes[which];
  using WarpSums = Sums<S, shape>;
  constexpr int column_bytes = WarpSums::kColumn;
  extern __shared__ __align__(16) char shared[];
  const SumGeometry& g = p.g;
  const int lane = threadIdx.x % 32;
  const int warp = uniform(static_cast<int>(threadIdx.x) / 32);
  const int warps = g.warps();
  let_next_kernel_start();

  int index = static_cast<int>(blockIdx.x);
  const int tile = p.tap_tiles.short_remainder(index);
  const int slice = p.slice_count.short_remainder(index);
  const int channel = index;
  const int first_unit = static_cast<int>(g.units * slice / p.slices);
  const int last_unit = static_cast<int>(g.units * (slice + 1) / p.slices);
  const int split = warp / g.tap_groups;
  // The warp's columns of the filter.
  const int first_tap = tile * g.tile_taps + (warp - split * g.tap_groups) * shape.taps;
  const int last_tap = min(min(first_tap + shape.taps, (tile + 1) * g.tile_taps), g.w.kernel);

  RunLoader loader(reinterpret_cast<std::uint64_t*>(shared + g.barriers_at), 1, 2 * g.images);
  const auto load = [&](int unit) {
    if (unit >= last_unit || !loader.loads()) return;
    loader.load(0, [&](int i) {
      return i < g.images ? p.source_plane(input, unit, i, channel, shared)
                          : p.result_plane(grad_output, unit, i - g.images, channel, shared);
    });
  };
  zero_shared(shared + g.source_at, g.barriers_at - g.source_at);
  __syncthreads();
  load(first_unit);

  // The lane's column of a product, and the image that has it, for either operand.
  const std::uint32_t turned = shared_address(shared);
  const auto lane_place = [&](int column, int plane_bytes) {
    return (column & (g.images - 1)) * plane_bytes +
           (g.images < kStep ? column / g.images : 0) * column_bytes;
  };
  const std::uint32_t source_lane =
      turned + g.source_at + (g.lead - g.w.pad + first_tap) * column_bytes +
      lane_place(lane % 8 + lane / 16 * 8, g.source_plane) + lane / 8 % 2 * 16;
  const std::uint32_t grad_lane =
      turned + g.result_at + lane_place(lane % 16, g.result_plane) + lane / 16 * 16;
  // Columns of the output gradient that meet the image with any of the warp's taps.
  const int first_column = max(0, g.w.pad - (last_tap - 1));
  const int last_column = min(g.w.result, g.w.source + g.w.pad - first_tap);
  const int first_step = first_column / g.step_columns + split;
  const int step_bytes = g.step_columns * column_bytes;
  WarpSums sums;
  sums.clear();
  const bool sums_bias = p.partials.bias && tile == 0;
  float bias_sum = 0;
  float* const mine = reinterpret_cast<float*>(shared + g.sums_at) + warp * shape.taps * g.h.kernel;
  float* const square = reinterpret_cast<float*>(shared + g.squares_at) + warp * kSquare;
  int products = 0;  // that were added up since the last flush, of each sum

#pragma unroll 1
  for (int unit = first_unit;; ++unit) {
    const bool ends = unit >= last_unit;
    products += g.unit_steps();
    if (products > kMostSteps || ends) {
      if (first_tap < last_tap) sums.flush(mine, square, g.h.kernel, g.h.pad);
      products = g.unit_steps();
    }
    if (ends) break;
    loader.wait(0, 0);
    __syncthreads();
    const int images = p.images_of(unit);
#pragma unroll 1
    for (int item = warp; item < 2 * g.images * g.parts; item += warps) {
      int plane = item;
      const int part = p.parts.remainder(plane);
      const bool of_source = plane < g.images;
      const int image = of_source ? plane : plane - g.images;
      const bool there = image < images;
      if (of_source) {
        turn_tile<Shape{shape.steps}>(
            turned + g.source_at + g.lead * column_bytes + image * g.source_plane,
            first_of(p.source_plane(input, unit, image, channel, shared)), p.source,
            there ? g.h.source : 0, part, g.parts);
      } else {
        turn_tile<Shape{shape.steps}>(
            turned + g.result_at + image * g.result_plane,
            first_of(p.result_plane(grad_output, unit, image, channel, shared)), p.result,
            there ? g.h.result : 0, part, g.parts);
      }
    }
    if (sums_bias) {
#pragma unroll 1
      for (int image = 0; image < images; ++image) {
        const auto run = p.result_plane(grad_output, unit, image, channel, shared);
        const auto* from =
            reinterpret_cast<const typename S::Type*>(run.shared) + misalignment(run.global);
        for (int i = threadIdx.x; i < run.count; i += blockDim.x)
          bias_sum += S::widen(from[i]);
      }
    }
    __syncthreads();
    load(unit + 1);
    if (first_tap < last_tap) {
      std::uint32_t source = source_lane + first_step * step_bytes;
      std::uint32_t grad = grad_lane + first_step * step_bytes;
#pragma unroll 1
      for (int column = first_step * g.step_columns; column < last_column;
           column += g.splits * g.step_columns) {
        sums.add(source, grad);
        source += g.splits * step_bytes;
        grad += g.splits * step_bytes;
      }
    }
  }

  const SliceSink<S> sink(p.partials, p.slices, slice, partial, result);
  __syncthreads();
  // The sums of all warps, in their order.
  const float* const all = reinterpret_cast<const float*>(shared + g.sums_at);
  const int taps = min(g.tile_taps, g.w.kernel - tile * g.tile_taps);
  for (int i = threadIdx.x; i < taps * g.h.kernel; i += blockDim.x) {
    const int tap = i / g.h.kernel, row = i - tap * g.h.kernel;
    float sum = 0;
    for (int k = 0; k < g.splits; ++k)
      sum += all[(k * g.tap_groups * shape.taps + tap) * g.h.kernel + row];
    sink.put(channel, (g.first_tap_row + row) * p.kernel_w + g.first_tap + tile * g.tile_taps + tap,
             sum);
  }
  // Taps that meet no image.
  if (tile == 0) {
    for (int i = threadIdx.x; i < p.partials.taps; i += blockDim.x) {
      const int row = i / p.kernel_w - g.first_tap_row, column = i % p.kernel_w - g.first_tap;
      const bool meets = static_cast<unsigned>(row) < static_cast<unsigned>(g.h.kernel) &&
                         static_cast<unsigned>(column) < static_cast<unsigned>(g.w.kernel);
      if (!meets) sink.put(channel, i, 0);
    }
  }
  if (sums_bias) sink.put_bias(channel, bias_sum, reinterpret_cast<float*>(shared + g.squares_at));
#endif
}

template <typename S>
using SumKernel = void (*)(WeightGradient, const typename S::Type*, const typename S::Type*, float*,
                           Gradients<S>);

template <typename S, int... which>
SumKernel<S> choose_sums(const SumShape& shape, std::integer_sequence<int, which...>) {
  SumKernel<S> found = nullptr;
  ((shape == kSumShapes[which] ? void(found = sum_products<S, which>) : void()), ...);
  return found;
}
template <typename S>
SumKernel<S> choose_sums(const SumShape& shape) {
  return choose_sums<S>(shape, std::make_integer_sequence<int, std::size(kSumShapes)>{});
}

template <DType dtype>
void launch_sum_products(const Problem& problem, const Plan& plan, const Tensors& tensors,
                         cudaStream_t stream) {
  using S = Scalar<dtype>;
  const SumGeometry g = sum_geometry(problem, plan.tiling);
  launch_slices<S>("columns sum_products", choose_sums<S>(g.shape),
                   WeightGradient(g, problem, plan, tensors), plan, tensors, stream);
}

}  // namespace dwconv::columns
