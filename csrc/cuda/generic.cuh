// The generic family: every problem, both layouts, 64-bit indexing throughout. Not fast, but never
// wrong: the fallback of all other families, and their reference.
//
// forward and backward_input gather: one thread per result walks the taps that meet it.
// backward_weight: see weight_gradient below.
#pragma once

#include "../families/generic.h"
#include "check.cuh"
#include "generic.h"
#include "layout.cuh"
#include "scalar.cuh"
#include "taps.cuh"

namespace dwconv::generic {

template <Pass pass>
struct GatherTaps;
template <>
struct GatherTaps<Pass::forward> {
  using Type = ForwardTaps;
};
template <>
struct GatherTaps<Pass::backward_input> {
  using Type = BackwardInputTaps;
};

template <Pass pass, Layout layout>
struct Gather {
  typename GatherTaps<pass>::Type rows, columns;
  Index<layout> source, result;
  std::int64_t results;
  int kernel_h, kernel_w;
  Divisor multiplier;

  // Filters of one result: its own in forward, all those of its channel in backward_input.
  __device__ std::int64_t first_filter(std::int64_t channel) const {
    return pass == Pass::forward ? channel : channel * multiplier.value();
  }
  __device__ std::int64_t filters() const { return pass == Pass::forward ? 1 : multiplier.value(); }
  __device__ std::int64_t source_channel(std::int64_t filter) const {
    return pass == Pass::forward ? multiplier.quotient(filter) : filter;
  }
};

template <Pass pass, DType dtype, Layout layout>
__global__ void __launch_bounds__(kGatherThreads)
    gather(const Gather<pass, layout> p, const typename Scalar<dtype>::Type* __restrict__ source,
           const typename Scalar<dtype>::Type* __restrict__ weight,
           const typename Scalar<dtype>::Type* __restrict__ bias,
           typename Scalar<dtype>::Type* __restrict__ result) {
  using S = Scalar<dtype>;
  using Sum = typename S::Sum;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kGatherThreads + threadIdx.x;
  if (index >= p.results) return;

  const Position at = p.result.split(index);
  const Walk rows = p.rows.at(at.h);
  const Walk columns = p.columns.at(at.w);
  const std::int64_t row_step = rows.source_step * p.source.row_stride();
  const std::int64_t column_step = columns.source_step * p.source.column_stride();
  const std::int64_t filter = p.first_filter(at.c);

  const auto* plane =
      source + p.source.offset({at.n, p.source_channel(filter), rows.source, columns.source});
  const auto* taps = weight + (filter * p.kernel_h + rows.tap) * p.kernel_w + columns.tap;
  const std::int64_t filter_size = static_cast<std::int64_t>(p.kernel_h) * p.kernel_w;

  Sum sum = 0;
  for (std::int64_t m = p.filters(); m > 0; --m) {
    const auto* source_row = plane;
    const auto* tap_row = taps;
    for (int i = 0; i < rows.count; ++i) {
      // Summed row by row: the rounding error grows with the root of a row and of their number, not
      // of the whole filter.
      Sum row_sum = 0;
      const auto* element = source_row;
      const auto* tap = tap_row;
#pragma unroll 4
      for (int j = 0; j < columns.count; ++j) {
        row_sum += S::widen(*element) * S::widen(*tap);
        element += column_step;
        tap += columns.tap_step;
      }
      sum += row_sum;
      source_row += row_step;
      tap_row += static_cast<std::int64_t>(rows.tap_step) * p.kernel_w;
    }
    plane += p.source.channel_stride();
    taps += filter_size;
  }
  if (bias != nullptr) sum += S::widen(bias[filter]);
  result[index] = S::round(sum);
}

// backward_weight. The output rows of the batch are cut into slices; a block takes one slice of one
// group of filters, a warp of it one tap at a time: it walks the outputs for which that tap lies
// inside the input. All warps of a block read the same slice, from L1 after the first time. The
// sums of the slices go to the workspace and are added in a fixed order by `add_slices`: no
// atomics, so two runs agree to the bit.
template <Layout layout>
struct WeightGradient {
  TapOutputs rows, columns;
  Index<layout> input, output;
  std::int64_t batch_rows;  // output rows of the whole batch
  std::int64_t rows_per_slice;
  std::int64_t filters;
  std::int64_t groups;
  int kernel_w, taps;
  int sums;  // of a filter: its taps, and after them that of the bias if it is wanted
  Divisor multiplier, output_h;
  Lanes lanes;
};

// The sum of `count` products of two strided runs of elements. The loads of a batch are issued
// before the first is used; what is left of the run goes in batches half as long. Left to itself
// the compiler waits for each pair in turn: see LADDER.md.
template <typename S, int batch>
__device__ typename S::Sum dot(const typename S::Type* a, std::int64_t a_step,
                               const typename S::Type* b, std::int64_t b_step, std::int64_t count) {
  typename S::Sum sum = 0;
#pragma unroll 1
  for (; count >= batch; count -= batch) {
    typename S::Type batch_a[batch], batch_b[batch];
#pragma unroll
    for (int i = 0; i < batch; ++i) {
      batch_a[i] = *a;
      batch_b[i] = *b;
      a += a_step;
      b += b_step;
    }
#pragma unroll
    for (int i = 0; i < batch; ++i)
      sum += S::widen(batch_a[i]) * S::widen(batch_b[i]);
  }
  if constexpr (batch > 1) sum += dot<S, batch / 2>(a, a_step, b, b_step, count);
  return sum;
}

template <DType dtype, Layout layout>
__global__ void __launch_bounds__(kMaxTapWarps* kWarp)
    sum_slices(const WeightGradient<layout> p,
               const typename Scalar<dtype>::Type* __restrict__ input,
               const typename Scalar<dtype>::Type* __restrict__ grad_output,
               typename Scalar<dtype>::Sum* __restrict__ partial) {
  using S = Scalar<dtype>;
  using Sum = typename S::Sum;
  const int lane = threadIdx.x % kWarp;
  const std::int64_t slice = blockIdx.x / p.groups;
  const std::int64_t group = blockIdx.x - slice * p.groups;
  const std::int64_t filter = group * p.lanes.filters + lane % p.lanes.filters;
  const std::int64_t channel = p.multiplier.quotient(filter);
  const bool active = filter < p.filters;
  const int column_lane = lane / p.lanes.filters % p.lanes.columns;
  const int image_lane = lane / (p.lanes.filters * p.lanes.columns);

  const std::int64_t begin = slice * p.rows_per_slice;
  const std::int64_t end = active ? min(begin + p.rows_per_slice, p.batch_rows) : 0;
  const std::int64_t g_row_step = p.output.row_stride();
  const std::int64_t x_row_step = p.input.row_stride() * p.rows.stride();
  const std::int64_t g_column_step = p.output.column_stride() * p.lanes.columns;
  const std::int64_t x_column_step = p.input.column_stride() * p.columns.stride() * p.lanes.columns;

  // The bias is a tap that meets a one for every output.
  __shared__ typename S::Type one;
  if (threadIdx.x == 0) one = S::round(1);
  __syncthreads();

  for (int tap = threadIdx.x / kWarp; tap < p.sums; tap += blockDim.x / kWarp) {
    const bool of_bias = tap == p.taps;
    const int tap_h = of_bias ? 0 : tap / p.kernel_w;
    const int tap_w = of_bias ? 0 : tap - tap_h * p.kernel_w;
    const Span rows = of_bias ? Span{0, p.rows.outputs()} : p.rows.of(tap_h);
    const Span columns = of_bias ? Span{0, p.columns.outputs()} : p.columns.of(tap_w);
    const std::int64_t row_step = of_bias ? 0 : x_row_step;
    const std::int64_t column_step = of_bias ? 0 : x_column_step;
    const std::int64_t column = columns.first + column_lane;
    const std::int64_t steps = (columns.last - column + p.lanes.columns - 1) / p.lanes.columns;

    Sum sum = 0;
    std::int64_t n = p.output_h.quotient(begin) + image_lane;
    std::int64_t image = n * p.rows.outputs();  // its first row
    for (; image < end; n += p.lanes.images(), image += p.lanes.images() * p.rows.outputs()) {
      const std::int64_t first = max(rows.first, begin - image);
      const std::int64_t last = min(rows.last, end - image);
      const auto* g = grad_output + p.output.offset({n, filter, first, column});
      const auto* x = of_bias ? &one
                              : input + p.input.offset({n, channel, p.rows.input_of(first, tap_h),
                                                        p.columns.input_of(column, tap_w)});
      // Lanes lie along a row. In nchw a lane then walks down its columns, which are longer than
      // its share of a row; in nhwc along the row, where pixels are neighbours.
      if constexpr (layout == Layout::nchw) {
        for (std::int64_t step = 0; step < steps; ++step) {
          sum += dot<S, 4>(g, g_row_step, x, row_step, last - first);
          g += g_column_step;
          x += column_step;
        }
      } else {
        for (std::int64_t row = first; row < last; ++row) {
          sum += dot<S, 8>(g, g_column_step, x, column_step, steps);
          g += g_row_step;
          x += row_step;
        }
      }
    }
    for (int offset = kWarp / 2; offset >= p.lanes.filters; offset /= 2) {
      sum += __shfl_down_sync(0xffffffffu, sum, offset);
    }
    if (active && lane < p.lanes.filters) {
      partial[(slice * p.filters + filter) * p.sums + tap] = sum;
    }
  }
}

template <DType dtype>
__global__ void __launch_bounds__(kWarp* kReduceLanes)
    add_slices(const typename Scalar<dtype>::Sum* __restrict__ partial, std::int64_t slices,
               std::int64_t results, Divisor of_filter, int taps,
               typename Scalar<dtype>::Type* __restrict__ weight,
               typename Scalar<dtype>::Type* __restrict__ bias) {
  using Sum = typename Scalar<dtype>::Sum;
  __shared__ Sum sums[kReduceLanes][kWarp];
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  Sum sum = 0;
  if (index < results) {
#pragma unroll 4
    for (std::int64_t slice = threadIdx.y; slice < slices; slice += kReduceLanes) {
      sum += partial[slice * results + index];
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || index >= results) return;
  for (int lane = 1; lane < kReduceLanes; ++lane)
    sum += sums[lane][threadIdx.x];
  const std::int64_t filter = of_filter.quotient(index);
  const auto tap = static_cast<int>(index - filter * of_filter.value());
  (tap < taps ? weight[filter * taps + tap] : bias[filter]) = Scalar<dtype>::round(sum);
}

template <Pass pass, DType dtype, Layout layout>
void launch(const Problem& problem, const Plan& plan, const Tensors& tensors, cudaStream_t stream) {
  using Type = typename Scalar<dtype>::Type;
  using Sum = typename Scalar<dtype>::Sum;
  const Index<layout> input(problem.channels, problem.h.input, problem.w.input);
  const Index<layout> output(problem.filters(), problem.h.output(), problem.w.output());
  const auto kernel_h = static_cast<int>(problem.h.kernel);
  const auto kernel_w = static_cast<int>(problem.w.kernel);
  const auto blocks = static_cast<unsigned>(plan.blocks);

  if constexpr (pass == Pass::backward_weight) {
    const std::int64_t rows = problem.batch * problem.h.output();
    const WeightGradient<layout> p{.rows = TapOutputs(problem.h),
                                   .columns = TapOutputs(problem.w),
                                   .input = input,
                                   .output = output,
                                   .batch_rows = rows,
                                   .rows_per_slice = (rows + plan.slices - 1) / plan.slices,
                                   .filters = problem.filters(),
                                   .groups = plan.blocks / plan.slices,
                                   .kernel_w = kernel_w,
                                   .taps = kernel_h * kernel_w,
                                   .sums = static_cast<int>(problem.sums()),
                                   .multiplier = Divisor(problem.multiplier),
                                   .output_h = Divisor(problem.h.output()),
                                   .lanes = lanes_of(problem)};
    auto* partial = static_cast<Sum*>(tensors.workspace);
    sum_slices<dtype, layout>
        <<<blocks, plan.threads, 0, stream>>>(p, static_cast<const Type*>(tensors.input),
                                              static_cast<const Type*>(tensors.output), partial);
    check_launch("generic sum_slices");
    const std::int64_t results = problem.filters() * problem.sums();
    add_slices<dtype>
        <<<static_cast<unsigned>((results + kWarp - 1) / kWarp), dim3(kWarp, kReduceLanes), 0,
           stream>>>(partial, plan.slices, results, Divisor(problem.sums()), kernel_h * kernel_w,
                     static_cast<Type*>(tensors.weight), static_cast<Type*>(tensors.bias));
    check_launch("generic add_slices");
  } else {
    using Taps = typename GatherTaps<pass>::Type;
    constexpr bool is_forward = pass == Pass::forward;
    const Gather<pass, layout> p{
        .rows = Taps(problem.h),
        .columns = Taps(problem.w),
        .source = is_forward ? input : output,
        .result = is_forward ? output : input,
        .results = is_forward ? problem.output_numel() : problem.input_numel(),
        .kernel_h = kernel_h,
        .kernel_w = kernel_w,
        .multiplier = Divisor(problem.multiplier)};
    gather<pass, dtype, layout><<<blocks, plan.threads, 0, stream>>>(
        p, static_cast<const Type*>(is_forward ? tensors.input : tensors.output),
        static_cast<const Type*>(tensors.weight), static_cast<const Type*>(tensors.bias),
        static_cast<Type*>(is_forward ? tensors.output : tensors.input));
    check_launch("generic gather");
  }
}

}  // namespace dwconv::generic
