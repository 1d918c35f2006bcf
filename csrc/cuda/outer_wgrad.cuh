// The outer family's kernel. Columns of an image are in the order that suits loads: those of a
// block of 16 that a product has in rows g and g + 8, or in column g of two products, are
// neighbours.
#pragma once

#include "image_blocks.cuh"
#include "launch_units.cuh"
#include "mma.cuh"
#include "outer.h"
#include "outer_fragments.cuh"

namespace dwconv::outer {

// Geometry as kernels want it. A unit's image is a block of images.
struct Grid : UnitGrid<Geometry> {
  SmallDivisor unit_channels;

  Grid(const Geometry& geometry, const Problem& problem, const Plan& plan)
      : UnitGrid(geometry, problem, plan), unit_channels(g.channels) {}

  // Where a lane finds its images of a channel, `offset` bytes on.
  template <typename Type>
  __device__ LaneImages images(const Type* tensor, const Unit& unit, int channel, int plane,
                               const char* stage, int step, int offset) const {
    const unsigned first = static_cast<unsigned>(first_plane(unit)) * plane * 2;
    const auto global = static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(tensor)) + first;
    return LaneImages(stage, step, global, 2u * channels * plane, 2 * channel * plane + offset);
  }
};

using WeightGradient = UnitSums<Grid>;

// A warp's sums of its rows of the filter.
template <typename S, Shape shape>
class RowSums {
 public:
  static constexpr int kRows = shape.rows();
  static constexpr int kAtOnce = shape.rows_at_once();

  // Where a lane's columns begin in a row of the image, or in two rows, and in one of the output
  // gradient: bytes.
  __device__ static int source_offset(const Geometry& g) {
    const int two = threadIdx.x % 32 / 4;
    return shape.paired() ? 2 * (two / 4 * g.w.source + two % 4 * 2) : 4 * two;
  }
  __device__ static int gradient_offset() {
    return (shape.paired() ? 2 : 4) * (static_cast<int>(threadIdx.x) % 32 / 4);
  }

  // What a unit's images and output gradients give.
  __device__ void add(const Geometry& g, int job, const LaneImages& source,
                      const LaneImages& gradient, const LaneImages& zeros) {
    if constexpr (shape.paired()) {
      add_pairs(g, source, gradient);
    } else {
      add_rows(g, job, source, gradient, zeros);
    }
  }
  // Products of each sum that a unit brings.
  __device__ static int products(const Geometry& g) { return g.h.source; }

  // Adds the sums' diagonals to those of a filter in shared memory, by way of the warp's squares,
  // and begins anew.
  __device__ void flush(const Geometry& g, int job, float* squares, float* filter) {
    const int lane = threadIdx.x % 32;
    // The rows move on, so that one piece of code serves all: unrolled it took the time of its own
    // way from memory.
#pragma unroll 1
    for (int part = 0; part < kRows; part += kAtOnce) {
#pragma unroll
      for (int m = 0; m < shape.blocks_m(); ++m)
#pragma unroll
        for (int n = 0; n < shape.blocks_n(); ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int row = 16 * m + lane / 4 * 2 + i / 2;
            const int pair = lane % 4 * 2 + i % 2;
            const int column = shape.paired() ? pair : 16 * (n / 2) + 2 * pair + n % 2;
#pragma unroll
            for (int j = 0; j < kRows; ++j) {
              if (j < kAtOnce)
                squares[j * shape.square() + row * shape.pitch() + column] = sums_[j][m][n][i];
              sums_[j][m][n][i] = j + kAtOnce < kRows ? sums_[(j + kAtOnce) % kRows][m][n][i] : 0;
            }
          }
      __syncwarp();
      add_diagonals(g, shape.paired() ? g.h.pad - (kFewColumns - 1) : g.first_row(job) + part,
                    squares, filter);
      __syncwarp();
    }
  }

 private:
  using Type = typename S::Type;
  using GradientRow = std::uint32_t[shape.blocks_n()][2];

  // All rows of both, which are no more than 8: sum j is of rows that are j - 7 apart, and in its
  // second half of rows one more apart.
  __device__ void add_pairs(const Geometry& g, LaneImages source, LaneImages gradient) {
    constexpr int most = kFewColumns;
    std::uint32_t grad[most][2];
#pragma unroll
    for (int row = 0; row < most; ++row) {
      grad[row][0] = grad[row][1] = 0;
      if (row < g.h.result) {
        TwoColumns<false> column;
        column.load<0>(gradient);
        grad[row][0] = column.first(0);
        grad[row][1] = column.first(1);
      }
      gradient.advance(2 * g.w.result);
    }
    const int second = static_cast<int>(threadIdx.x) % 32 / 16;
#pragma unroll
    for (int h = 0; h < most; h += 2) {
      if (h >= g.h.source) break;
      std::uint32_t image[4] = {};
      // The second row of the last pair may not be there, and its sums are other rows' as well.
      if (h + second < g.h.source) {
        Columns<false, 1> columns;
        columns.load(source);
        columns.rows(0, image);
      }
      source.advance(4 * g.w.source);
#pragma unroll
      for (int row = 0; row < most; ++row) {
        float (&sum)[4] = sums_[h - row + most - 1][0][0];
        multiply_add<Type>(sum, image, grad[row], sum);
      }
    }
  }

  // A row of the image meets rows of the output gradient, one for each row of the filter; the next
  // one meets the same but for the first.
  __device__ void add_rows(const Geometry& g, int job, LaneImages source, LaneImages gradient,
                           const LaneImages& zeros) {
    constexpr int blocks_m = shape.blocks_m(), pairs_n = shape.blocks_n() / 2;
    const int shift = g.h.pad - g.first_row(job);
    const int begin = max(0, -shift);
    const int end = min(g.h.source, g.h.result + kRows - 1 - shift);
    int row = begin + shift - (kRows - 1);  // of the output gradient
    source.advance(2 * begin * g.w.source);
    gradient.advance(2 * row * g.w.result);
    Columns<shape.even, blocks_m> next_source;
    Columns<shape.even, pairs_n> next_gradient;
    const auto load_gradient = [&] {
      const bool there = static_cast<unsigned>(row) < static_cast<unsigned>(g.h.result);
      LaneImages from = zeros;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        from.at[i] = there ? gradient.at[i] : zeros.at[i];
      next_gradient.load(from);
      gradient.advance(2 * g.w.result);
      ++row;
    };
    const auto load = [&] {
      next_source.load(source);
      source.advance(2 * g.w.source);
      load_gradient();
    };
    std::uint32_t grad[kRows][2 * pairs_n][2];
    const auto take_gradient = [&](int j) {
#pragma unroll
      for (int n = 0; n < pairs_n; ++n)
        next_gradient.columns(n, grad[j][2 * n], grad[j][2 * n + 1]);
    };
#pragma unroll
    for (int j = 1; j < kRows; ++j) {
      load_gradient();
      take_gradient(j);
    }
    std::uint32_t image[blocks_m][4];
    const auto take = [&](int j) {
      take_gradient(j);
#pragma unroll
      for (int m = 0; m < blocks_m; ++m)
        next_source.rows(m, image[m]);
    };
    load();
    take(0);
#pragma unroll 1
    for (int left = end - begin; left > 0;) {
#pragma unroll
      for (int u = 0; u < kRows; ++u) {
        if (left-- <= 0) break;
        // The next row comes while this one is multiplied. What it takes the place of goes first.
        load();
#pragma unroll
        for (int j = kRows - 1; j >= 0; --j)
#pragma unroll
          for (int m = 0; m < blocks_m; ++m)
#pragma unroll
            for (int n = 0; n < 2 * pairs_n; ++n) {
              float (&sum)[4] = sums_[j][m][n];
              multiply_add<Type>(sum, image[m], grad[(u - j + kRows) % kRows][n], sum);
            }
        take((u + 1) % kRows);
      }
    }
  }

  // The lanes take a tap each, of the rows of the filter from `first` on that the squares are of.
  // Square j of pairs is of two rows, and each of them is in two squares.
  __device__ static void add_diagonals(const Geometry& g, int first, const float* squares,
                                       float* filter) {
    const int count = shape.paired() ? kAtOnce + 1 : kAtOnce;
    int row = 0;
    for (int tap = threadIdx.x % 32;; tap += 32) {
      while (tap >= g.w.kernel) {
        tap -= g.w.kernel;
        ++row;
      }
      if (row >= count) break;
      const int of = first + row - g.first_tap_row;
      if (of < 0 || of >= g.tap_rows) continue;
      float sum = 0;
      if (row < kAtOnce) sum = diagonal(g, tap, squares + row * shape.square());
      if (shape.paired() && row > 0)
        sum += diagonal(g, tap, squares + (row - 1) * shape.square() + shape.square() / 2);
      filter[(first + row) * g.w.kernel + tap] += sum;
    }
  }
  // What a tap has in a square of columns of the image times columns of the output gradient.
  __device__ static float diagonal(const Geometry& g, int tap, const float* square) {
    const int first = max(0, tap - g.w.pad);
    const int last = min(g.w.source, g.w.result + tap - g.w.pad);
    const float* at = square + g.w.pad - tap;
    float sum = 0;
#pragma unroll 8
    for (int column = 0; column < shape.columns; ++column)
      if (column >= first && column < last) sum += at[column * (shape.pitch() + 1)];
    return sum;
  }

  float sums_[kRows][shape.blocks_m()][shape.blocks_n()][4] = {};
};

// What of a unit's output gradients is a warp's part of a channel's bias: every `jobs`th image.
template <typename S>
__device__ inline float sum_of_images(const Geometry& g, const Unit& unit, const Grid& grid,
                                      const typename S::Type* grad_output, int channel, int job,
                                      const char* stage) {
  float sum = 0;
  for (int image = job; image < grid.images_of(unit); image += g.jobs) {
    const auto run = run_of_image(grid, grad_output, unit, image, g.result_plane, nullptr);
    const auto* from = reinterpret_cast<const typename S::Type*>(stage + image * g.result_step) +
                       misalignment(run.global) + channel * g.result_plane;
    for (int i = threadIdx.x % 32; i < g.result_plane; i += 32)
      sum += S::widen(from[i]);
  }
  return sum;
}

template <typename S, int columns, bool even>
__global__ void __launch_bounds__(32 * Shape{columns, even}.warps(), 1)
    sum_units(const __grid_constant__ WeightGradient p, const typename S::Type* __restrict__ input,
              const typename S::Type* __restrict__ grad_output, float* __restrict__ partial,
              const Gradients<S> result) {
#if __CUDA_ARCH__ >= 800
  constexpr Shape shape{columns, even};
  extern __shared__ __align__(16) char shared[];
  const Grid& grid = p.grid;
  const Geometry& g = grid.g;
  if (!p.partials.whole) let_next_kernel_start();
  // Warps of neighbouring numbers share a multiprocessor's quarters: all jobs in each of them.
  int job = static_cast<int>(threadIdx.x) / 32;
  const int warp = job;
  const int channel = grid.unit_channels.remainder(job);
  const int of_channel = p.partials.sums();
  auto* const sums = reinterpret_cast<float*>(shared + g.sums_at);
  auto* const squares = reinterpret_cast<float*>(shared + g.squares_at);
  float* const own_squares = squares + warp * shape.squares();
  float* const filter = sums + channel * of_channel;
  zero_shared(shared + g.zeros_at, g.squares_at - g.zeros_at);

  const auto load = [&](RunLoader& loader, int slot, char* stage, const Unit& unit) {
    loader.load(slot, p.use, [&](int i) {
      return i < kImages
                 ? run_of_image(grid, input, unit, i, g.source_plane, stage + i * g.source_step)
                 : run_of_image(grid, grad_output, unit, i - kImages, g.result_plane,
                                stage + g.grad_at + (i - kImages) * g.result_step);
    });
  };
  RowSums<S, shape> rows;
  float bias_sum = 0;
  int products = 0;  // of each sum, since the last flush

  Pipeline pipeline(grid, shared, 2 * kImages, load);
  while (pipeline.more()) {
    const Unit unit = pipeline.unit();
    const char* stage = pipeline.wait();
    const int images = grid.images_of(unit);
    if (images < kImages) {
      // Those that there are not are zeros, on both sides.
      const int source = images * g.source_step, gradient = images * g.result_step;
      zero_shared(const_cast<char*>(stage) + source, g.grad_at - source);
      zero_shared(const_cast<char*>(stage) + g.grad_at + gradient,
                  kImages * g.result_step - gradient);
      publish();
      __syncthreads();
    }
    if (channel < grid.channels_of(unit)) {
      products += rows.products(g);
      if (products > kMostSteps) {
        rows.flush(g, job, own_squares, filter);
        products = rows.products(g);
      }
      rows.add(g, job,
               grid.images(input, unit, channel, g.source_plane, stage, g.source_step,
                           rows.source_offset(g)),
               grid.images(grad_output, unit, channel, g.result_plane, stage + g.grad_at,
                           g.result_step, rows.gradient_offset()),
               LaneImages(shared_address(shared + g.zeros_at)));
      if (p.partials.bias)
        bias_sum += sum_of_images<S>(g, unit, grid, grad_output, channel, job, stage + g.grad_at);
    }

    pipeline.advance();
    if (pipeline.more() && pipeline.unit().group == unit.group) continue;
    rows.flush(g, job, own_squares, filter);
    products = 0;
    if (p.partials.bias) {
#pragma unroll
      for (int distance = 16; distance > 0; distance /= 2)
        bias_sum += __shfl_xor_sync(0xffffffffu, bias_sum, distance);
      __syncwarp();
      if (threadIdx.x % 32 == 0) *own_squares = bias_sum;
      bias_sum = 0;
    }
    __syncthreads();
    const int channels = grid.channels_of(unit);
    const Sink<S> sink(p, partial, result, shared, unit.group);
    for (int i = threadIdx.x; i < channels * of_channel; i += blockDim.x) {
      const int of = i / of_channel;
      const int index = i - of * of_channel;
      float sum = sums[i];
      sums[i] = 0;
      if (index == p.partials.taps) {
        for (int part = 0; part < g.jobs; ++part)
          sum += squares[(part * g.channels + of) * shape.squares()];
      }
      sink.put(of, index, sum);
    }
    sink.close(channels);
  }
#endif
}

template <typename S>
using Kernel = void (*)(WeightGradient, const typename S::Type*, const typename S::Type*, float*,
                        Gradients<S>);

template <typename S>
Kernel<S> choose(const Shape& shape) {
  const auto choose_even = [&]<int columns>() -> Kernel<S> {
    return shape.even ? sum_units<S, columns, true> : sum_units<S, columns, false>;
  };
  if (shape.paired()) return sum_units<S, kFewColumns, false>;
  if (shape.columns == kSomeColumns) return choose_even.template operator()<kSomeColumns>();
  return choose_even.template operator()<kMostColumns>();
}

template <DType dtype>
void launch_sum_units(const Problem& problem, const Plan& plan, const Tensors& tensors,
                      cudaStream_t stream) {
  using S = Scalar<dtype>;
  const Geometry g = geometry(problem, plan.tiling);
  Shape shape = g.shape;
  if (!begin_with(4, tensors)) shape.even = false;
  launch_unit_sums<S>("outer sum_units", choose<S>(shape), Grid(g, problem, plan), problem, plan,
                      tensors, stream);
}

}  // namespace dwconv::outer
