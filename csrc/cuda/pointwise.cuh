// The pointwise family: filters of one element, with any stride; forward pass and weight gradient
// of contiguous images, forward pass and input gradient of channels_last ones. Only the rows of the
// input that count are read; what other families keep in shared memory would be used once.
#pragma once

#include "../families/pointwise.h"
#include "channels.cuh"
#include "check.cuh"
#include "divide.cuh"
#include "pointwise.h"
#include "reduce.cuh"
#include "scalar.cuh"

namespace dwconv::pointwise {

// Elements of the output, counted as they lie in memory, and those of the input that they read.
struct Sampling {
  std::int64_t plane;         // elements of an image of the input
  int row_step, column_step;  // in the input
  int results;
  Divisor columns, rows, channels;

  explicit Sampling(const Problem& problem)
      : plane(problem.h.input * problem.w.input),
        row_step(static_cast<int>(problem.h.stride * problem.w.input)),
        column_step(static_cast<int>(problem.w.stride)),
        results(static_cast<int>(problem.output_numel())),
        columns(problem.w.output()),
        rows(problem.h.output()),
        channels(problem.channels) {}

  // Of an element of the output: where its input lies in the image. Leaves the image's number.
  __device__ std::int64_t in_image(int& index) const {
    const int row = columns.short_quotient(index);
    const int column = index - row * static_cast<int>(columns.value());
    index = rows.short_quotient(row);
    return static_cast<std::int64_t>(row - index * static_cast<int>(rows.value())) * row_step +
           column * column_step;
  }
};

template <typename S>
__global__ void __launch_bounds__(kThreads)
    scale(const Sampling p, const typename S::Type* __restrict__ input,
          const typename S::Type* __restrict__ weight, const typename S::Type* __restrict__ bias,
          typename S::Type* __restrict__ output) {
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * (kThreads * kBatch);
  typename S::Type elements[kBatch];
  int images[kBatch];
#pragma unroll
  for (int i = 0; i < kBatch; ++i) {
    const std::int64_t result = first + i * kThreads + threadIdx.x;
    images[i] = result < p.results ? static_cast<int>(result) : 0;
    const std::int64_t at = p.in_image(images[i]);
    elements[i] = input[images[i] * p.plane + at];
  }
#pragma unroll
  for (int i = 0; i < kBatch; ++i) {
    const std::int64_t result = first + i * kThreads + threadIdx.x;
    const int channel =
        images[i] - p.channels.short_quotient(images[i]) * static_cast<int>(p.channels.value());
    const float start = bias == nullptr ? 0.f : S::widen(bias[channel]);
    if (result < p.results)
      output[result] = S::round(fmaf(S::widen(elements[i]), S::widen(weight[channel]), start));
  }
}

// A block for each channel. The order of its sums is that of its threads.
template <typename S>
__global__ void __launch_bounds__(kThreads)
    sum_products(const Sampling p, const typename S::Type* __restrict__ input,
                 const typename S::Type* __restrict__ grad_output, const Gradients<S> result) {
  const auto channel = static_cast<int>(blockIdx.x);
  const auto channels = static_cast<int>(p.channels.value());
  const auto plane = static_cast<int>(p.columns.value() * p.rows.value());  // of the output
  const int count = p.results / channels;
  float sum = 0, bias_sum = 0;
  for (int first = threadIdx.x; first < count; first += kThreads * kBatch) {
    float elements[kBatch], grads[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const bool there = i * kThreads < count - first;
      const int index = there ? first + i * kThreads : 0;
      int image = index;
      const std::int64_t at = p.in_image(image);
      const int in_plane = index - image * plane;
      image = image * channels + channel;
      elements[i] = S::widen(input[image * p.plane + at]);
      grads[i] = there ? S::widen(grad_output[image * plane + in_plane]) : 0.f;
      if (!there) elements[i] = 0;
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      sum = fmaf(elements[i], grads[i], sum);
      bias_sum += grads[i];
    }
  }
  __shared__ float sums[2][kThreads / 32];
  for (int step = 16; step > 0; step /= 2) {
    sum += __shfl_down_sync(0xffffffffu, sum, step);
    bias_sum += __shfl_down_sync(0xffffffffu, bias_sum, step);
  }
  if (threadIdx.x % 32 == 0) {
    sums[0][threadIdx.x / 32] = sum;
    sums[1][threadIdx.x / 32] = bias_sum;
  }
  __syncthreads();
  const int index = static_cast<int>(threadIdx.x);  // 0: the tap, 1: the bias
  if (index < (result.bias == nullptr ? 1 : 2)) {
    float total = 0;
    for (const float part : sums[index])
      total += part;
    result.put(channel, 1, index, total);
  }
}

// Of channels_last images: the pixels of a result, and those of the source that they are made of.
struct Pixels {
  int count;
  Divisor channels, columns, rows;  // of the result
  Divisor row_step, column_step;    // the stride
  std::int64_t source_rows, source_columns;
  bool backward;  // the source is the output's gradient: most results have none

  Pixels(const Problem& problem, bool backward)
      : count(static_cast<int>(backward ? problem.input_numel() : problem.output_numel())),
        channels(problem.channels),
        columns(backward ? problem.w.input : problem.w.output()),
        rows(backward ? problem.h.input : problem.h.output()),
        row_step(problem.h.stride),
        column_step(problem.w.stride),
        source_rows(backward ? problem.h.output() : problem.h.input),
        source_columns(backward ? problem.w.output() : problem.w.input),
        backward(backward) {}

  // The source of a result, or -1; leaves its channel.
  __device__ std::int64_t source(int& index) const {
    int pixel = index;
    index = channels.short_remainder(pixel);
    std::int64_t column = columns.short_remainder(pixel);
    std::int64_t row = rows.short_remainder(pixel);
    if (backward) {
      int down = static_cast<int>(row), right = static_cast<int>(column);
      if (row_step.short_remainder(down) + column_step.short_remainder(right) > 0) return -1;
      row = down;
      column = right;
      if (row >= source_rows || column >= source_columns) return -1;
    } else {
      row *= row_step.value();
      column *= column_step.value();
    }
    return ((pixel * source_rows + row) * source_columns + column) * channels.value() + index;
  }
};

// Without strides, elements lie in the result as they do in the source.
template <typename S>
__global__ void __launch_bounds__(kThreads)
    scale_elements(const Pixels p, const typename S::Type* __restrict__ source,
                   const typename S::Type* __restrict__ weight,
                   const typename S::Type* __restrict__ bias,
                   typename S::Type* __restrict__ result) {
  constexpr int per = 16 / static_cast<int>(sizeof(typename S::Type));
  using V = Vector<S, per>;
  const auto channels = static_cast<int>(p.channels.value());
  const auto channel_of = [&](int element) { return p.channels.short_remainder(element); };
  const auto scaled = [&](float element, int channel) {
    const float start = bias == nullptr ? 0.f : S::widen(bias[channel]);
    return fmaf(element, S::widen(weight[channel]), start);
  };
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * (kThreads * kVectors);
  const int vectors = p.count / per;
  typename V::Word words[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const std::int64_t vector = first + i * kThreads + threadIdx.x;
    if (vector < vectors) words[i] = V::load(source + vector * per);
  }
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const std::int64_t vector = first + i * kThreads + threadIdx.x;
    if (vector >= vectors) continue;
    float elements[per];
    V::widen(elements, words[i]);
    int channel = channel_of(static_cast<int>(vector) * per);
#pragma unroll
    for (float& element : elements) {
      element = scaled(element, channel);
      channel = channel + 1 == channels ? 0 : channel + 1;
    }
    V::store(result + vector * per, elements);
  }
  // What is left of whole vectors, by the first threads of all.
  const int rest = vectors * per + static_cast<int>(threadIdx.x);
  if (blockIdx.x == 0 && rest < p.count)
    result[rest] = S::round(scaled(S::widen(source[rest]), channel_of(rest)));
}

// And with strides, one by one.
template <typename S>
__global__ void __launch_bounds__(kThreads)
    scale_pixels(const Pixels p, const typename S::Type* __restrict__ source,
                 const typename S::Type* __restrict__ weight,
                 const typename S::Type* __restrict__ bias, typename S::Type* __restrict__ result) {
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * (kThreads * kBatch);
  float elements[kBatch];
  int channel[kBatch];
#pragma unroll
  for (int i = 0; i < kBatch; ++i) {
    const std::int64_t at = first + i * kThreads + threadIdx.x;
    channel[i] = at < p.count ? static_cast<int>(at) : 0;
    const std::int64_t from = p.source(channel[i]);
    elements[i] = from < 0 ? 0.f : S::widen(source[from]) * S::widen(weight[channel[i]]);
  }
#pragma unroll
  for (int i = 0; i < kBatch; ++i) {
    const std::int64_t at = first + i * kThreads + threadIdx.x;
    const float start = bias == nullptr ? 0.f : S::widen(bias[channel[i]]);
    if (at < p.count) result[at] = S::round(elements[i] + start);
  }
}

template <Pass pass, DType dtype, Layout layout>
void launch(const Problem& problem, const Plan& plan, const Tensors& tensors, cudaStream_t stream) {
  using S = Scalar<dtype>;
  using Type = typename S::Type;
  const auto* input = static_cast<const Type*>(tensors.input);
  const auto blocks = static_cast<unsigned>(plan.blocks);
  if constexpr (layout == Layout::nhwc) {
    const bool backward = pass == Pass::backward_input;
    const auto* source = static_cast<const Type*>(backward ? tensors.output : tensors.input);
    const auto* weight = static_cast<const Type*>(tensors.weight);
    const auto* bias = static_cast<const Type*>(tensors.bias);
    auto* result = static_cast<Type*>(backward ? tensors.input : tensors.output);
    const Pixels pixels(problem, backward);
    if (has_strides(problem)) {
      scale_pixels<S><<<blocks, plan.threads, 0, stream>>>(pixels, source, weight, bias, result);
    } else {
      scale_elements<S><<<blocks, plan.threads, 0, stream>>>(pixels, source, weight, bias, result);
    }
    check_launch("pointwise scale_pixels");
  } else if constexpr (pass == Pass::forward) {
    scale<S><<<blocks, plan.threads, 0, stream>>>(
        Sampling(problem), input, static_cast<const Type*>(tensors.weight),
        static_cast<const Type*>(tensors.bias), static_cast<Type*>(tensors.output));
    check_launch("pointwise scale");
  } else {
    sum_products<S><<<blocks, plan.threads, 0, stream>>>(
        Sampling(problem), input, static_cast<const Type*>(tensors.output),
        Gradients<S>{static_cast<Type*>(tensors.weight), static_cast<Type*>(tensors.bias)});
    check_launch("pointwise sum_products");
  }
}

}  // namespace dwconv::pointwise
