// The batched family: weight gradient.
#pragma once

#include "../families/batched_wgrad.h"
#include "batched.h"
#include "batched_images.cuh"
#include "slice_sums.cuh"

namespace dwconv::batched {

struct WeightGradient {
  SumGeometry g;
  Partials partials;
  int channels, batch, slices;
  Divisor slice_count;
  SmallDivisor tap_groups, aparts, source_columns, result_columns, filter_columns, taps;

  WeightGradient(const SumGeometry& geometry, const Problem& problem, const Plan& plan)
      : g(geometry),
        partials(partials_of(problem, plan.slices)),
        channels(static_cast<int>(problem.channels)),
        batch(static_cast<int>(problem.batch)),
        slices(static_cast<int>(plan.slices)),
        slice_count(plan.slices),
        tap_groups(g.tap_groups),
        aparts(g.aparts),
        source_columns(g.w.source),
        result_columns(g.w.result),
        filter_columns(g.w.kernel),
        taps(g.h.kernel * g.w.kernel) {}
};

using Sums = float[kTapRows][kApart];

__device__ inline void load_block(float (&columns)[kColumns], const float4* from, int pitch) {
  const float4 low = from[0], high = from[pitch];
  columns[0] = low.x, columns[1] = low.y, columns[2] = low.z, columns[3] = low.w;
  columns[4] = high.x, columns[5] = high.y, columns[6] = high.z, columns[7] = high.w;
}

// The products of some blocks of a row of the output gradient, and of those of the image's rows
// that its rows of the filter meet: `met` has a bit for each, the first of them is at `source`.
template <int lane_images, bool all>
__device__ inline void multiply_add(Sums& sums, const float4* gradient, const float4* source,
                                    int source_step, int pitch, int blocks, unsigned met) {
#pragma unroll 1
  for (int block = 0; block < blocks; ++block, gradient += 2 * pitch, source += 2 * pitch) {
#pragma unroll
    for (int i = 0; i < lane_images; ++i) {
      float grad[kColumns];
      load_block(grad, gradient + i * kLanes, pitch);
#pragma unroll
      for (int r = 0; r < kTapRows; ++r) {
        if (!all && (met >> r & 1) == 0) continue;
        float columns[kColumns];
        load_block(columns, source + r * source_step + i * kLanes, pitch);
#pragma unroll
        for (int column = 0; column < kColumns; ++column)
#pragma unroll
          for (int result = 0; result < kColumns; ++result) {
            float& sum = sums[r][column - result + kColumns - 1];
            sum = fmaf(columns[column], grad[result], sum);
          }
      }
    }
  }
}

// Adds up so many sums over lanes whose numbers differ in `bit` and those below it. Of two sums, a
// lane sends the one that the other half of the lanes keeps.
template <int count, int bit>
__device__ inline void fold(float (&sums)[kSums]) {
  constexpr int half = count / 2;
  const bool upper = (threadIdx.x & bit) != 0;
#pragma unroll
  for (int i = 0; i < half; ++i) {
    const float sent = upper ? sums[i] : sums[i + half];
    const float kept = upper ? sums[i + half] : sums[i];
    sums[i] = kept + __shfl_xor_sync(0xffffffffu, sent, bit);
  }
  if constexpr (bit > 1) fold<half, bit / 2>(sums);
}

// The totals of a warp's sums, of which each lane has the two that its number says.
__device__ inline float2 sum_over_lanes(const Sums& sums) {
  static_assert(kSums == 2 * kLanes);
  float flat[kSums];
#pragma unroll
  for (int i = 0; i < kSums; ++i)
    flat[i] = sums[i / kApart][i % kApart];
  fold<kSums, kLanes / 2>(flat);
  return {flat[0], flat[1]};
}

template <int lane_images>
__global__ void __launch_bounds__(kMaxWarps* kLanes, 1)
    sum_images(const __grid_constant__ WeightGradient p, const float* __restrict__ input,
               const float* __restrict__ grad_output, float* __restrict__ partial,
               const Gradients<Scalar<DType::float32>> result) {
  extern __shared__ __align__(16) char shared[];
  const SumGeometry& g = p.g;
  auto* const source = reinterpret_cast<float*>(shared);
  auto* const gradient = reinterpret_cast<float*>(shared + g.result_at);
  auto* const others = reinterpret_cast<float*>(shared + g.sums_at);
  auto* const bias_sums = reinterpret_cast<float*>(shared + g.bias_at);
  const int lane = threadIdx.x % kLanes;
  const int warp = uniform(static_cast<int>(threadIdx.x) / kLanes), warps = blockDim.x / kLanes;
  let_next_kernel_start();

  int group = static_cast<int>(blockIdx.x);
  const int slice = p.slice_count.short_remainder(group);
  const int first_channel = group * g.channels;
  const int channels = min(g.channels, p.channels - first_channel);
  const int first_part = static_cast<int>(run_begin(g.parts, slice, p.slices));
  const int last_part = static_cast<int>(run_begin(g.parts, slice + 1, p.slices));
  const int tasks = channels * g.tap_groups * g.aparts;

  for (int i = threadIdx.x; i < (g.shared_bytes - g.sums_at) / 4; i += blockDim.x)
    others[i] = 0;
  zero_rest(source, g.channels * g.h.source, g.w.source, g.source_quads, g.quad_pitch);
  zero_rest(gradient, g.channels * g.h.result, g.w.result, g.result_quads, g.quad_pitch);

#pragma unroll 1
  for (int part = first_part; part < last_part; ++part) {
    const int first_image = part * g.images;
    const Images images{first_channel, channels, first_image, min(g.images, p.batch - first_image),
                        p.channels};
    load_images(images, input, g.h.source * g.w.source, p.source_columns, g.source_quads,
                g.quad_pitch, source);
    load_images(images, grad_output, g.h.result * g.w.result, p.result_columns, g.result_quads,
                g.quad_pitch, gradient);
    zero_absent(images, g.channels * g.h.source, g.source_quads, g.quad_pitch, source);
    zero_absent(images, g.channels * g.h.result, g.result_quads, g.quad_pitch, gradient);
    wait_for_copies(0);
    __syncthreads();
#pragma unroll 1
    for (int task = warp; task < tasks; task += warps) {
      int channel = task;
      const int apart = g.first_apart + p.aparts.remainder(channel);
      const int tap_row = g.first_tap_row + p.tap_groups.remainder(channel) * kTapRows;
      const int first_block = max(0, -apart);
      const int blocks = min(g.result_blocks(), g.source_blocks() - apart) - first_block;
      const int to_row = tap_row * g.h.dilation - g.h.pad;
      const int source_step = g.source_quads * g.quad_pitch;
      const auto* const gradients =
          reinterpret_cast<const float4*>(gradient) +
          (channel * g.h.result * g.result_quads + 2 * first_block) * g.quad_pitch + lane;
      const auto* const sources =
          reinterpret_cast<const float4*>(source) +
          (channel * g.h.source * g.source_quads + 2 * (first_block + apart)) * g.quad_pitch + lane;
      const int rows = min(kTapRows, g.first_tap_row + g.tap_rows - tap_row);
      const int first = max(0, -to_row - (rows - 1) * g.h.dilation);
      const int last = min(g.h.result, g.h.source - to_row);
      Sums sums = {};
#pragma unroll 1
      for (int row = first; row < last; ++row) {
        unsigned met = 0;
#pragma unroll
        for (int r = 0; r < kTapRows; ++r) {
          const int at = row + to_row + r * g.h.dilation;
          if (r < rows && static_cast<unsigned>(at) < static_cast<unsigned>(g.h.source))
            met |= 1u << r;
        }
        const float4* const grad = gradients + row * g.result_quads * g.quad_pitch;
        const float4* const from = sources + (row + to_row) * source_step;
        const int step = g.h.dilation * source_step;
        if (met == (1u << kTapRows) - 1) {
          multiply_add<lane_images, true>(sums, grad, from, step, g.quad_pitch, blocks, met);
        } else {
          multiply_add<lane_images, false>(sums, grad, from, step, g.quad_pitch, blocks, met);
        }
      }
      const float2 total = sum_over_lanes(sums);
      auto* const to = reinterpret_cast<float2*>(others + task * kSums) + lane;
      *to = {to->x + total.x, to->y + total.y};
    }
    if (p.partials.bias) {
#pragma unroll 1
      for (int channel = warp; channel < channels; channel += warps) {
        const auto* from = reinterpret_cast<const float4*>(gradient) +
                           channel * g.h.result * g.result_quads * g.quad_pitch + lane;
        float sum = 0;
        for (int i = 0; i < g.h.result * g.result_quads; ++i, from += g.quad_pitch)
#pragma unroll
          for (int image = 0; image < lane_images; ++image) {
            const float4 quad = from[image * kLanes];
            sum += (quad.x + quad.y) + (quad.z + quad.w);
          }
        bias_sums[channel * kLanes + lane] += sum;
      }
    }
    __syncthreads();
  }
  if (first_part == last_part) __syncthreads();

  const SliceSink<Scalar<DType::float32>> sink(p.partials, p.slices, slice, partial, result);
  for (int i = threadIdx.x; i < channels * p.partials.taps; i += blockDim.x) {
    int channel = i;
    const int tap = p.taps.remainder(channel);
    int tap_row = tap;
    const int apart = p.filter_columns.remainder(tap_row) * g.w.dilation - g.w.pad;
    const int row = tap_row - g.first_tap_row;
    float sum = 0;
    if (static_cast<unsigned>(row) < static_cast<unsigned>(g.tap_rows)) {
      // Blocks of columns that are as many blocks apart, rounded down, and one more.
      const int low = apart >> 3;
      static_assert(kColumns == 8);
#pragma unroll
      for (int more = 0; more < 2; ++more) {
        const int number = low + more - g.first_apart;
        const int at = apart - (low + more) * kColumns + kColumns - 1;
        if (at < 0 || static_cast<unsigned>(number) >= static_cast<unsigned>(g.aparts)) continue;
        const int task = (channel * g.tap_groups + row / kTapRows) * g.aparts + number;
        sum += others[task * kSums + row % kTapRows * kApart + at];
      }
    }
    sink.put(first_channel + channel, tap, sum);
  }
  if (!p.partials.bias) return;
  for (int channel = warp; channel < channels; channel += warps) {
    float sum = bias_sums[channel * kLanes + lane];
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance /= 2)
      sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    if (lane == 0) sink.put(first_channel + channel, p.partials.taps, sum);
  }
}

inline void launch_sum_images(const Problem& problem, const Plan& plan, const Tensors& tensors,
                              cudaStream_t stream) {
  using S = Scalar<DType::float32>;
  const SumGeometry g = sum_geometry(problem, plan.tiling);
  const WeightGradient p(g, problem, plan);
  const auto kernel = g.images > kLanes ? sum_images<2> : sum_images<1>;
  launch_slices<S>("batched sum_images", kernel, p, plan, tensors, stream);
}

}  // namespace dwconv::batched
