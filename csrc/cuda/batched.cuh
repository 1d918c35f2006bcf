// The batched family's kernel: forward pass, and input gradient, which is one with the filter
// turned round.
#pragma once

#include "../families/batched.h"
#include "batched.h"
#include "batched_images.cuh"
#include "check.cuh"

namespace dwconv::batched {

struct Convolution {
  Geometry g;
  bool mirrored;  // turn the filters round
  int channels, batch;
  Divisor image_blocks;
  SmallDivisor row_groups, tiles, source_columns, segment, segments, kernel_rows;
  SmallDivisor dilation_h, dilation_w;

  Convolution(const Geometry& geometry, const Problem& problem)
      : g(geometry),
        mirrored(problem.pass == Pass::backward_input),
        channels(static_cast<int>(problem.channels)),
        batch(static_cast<int>(problem.batch)),
        image_blocks(g.image_blocks),
        row_groups(g.row_groups),
        tiles(g.tiles),
        source_columns(g.w.source),
        segment(g.segment),
        segments(g.segments),
        kernel_rows(g.h.kernel),
        dilation_h(g.h.dilation),
        dilation_w(g.w.dilation) {}
};

// The taps of a unit's channels, by how far element and result are apart.
__device__ inline void load_taps(const Convolution& p, const Images& unit, const float* weight,
                                 float* to) {
  const Geometry& g = p.g;
  const int count = g.h.kernel * g.w.kernel;
  for (int i = threadIdx.x; i < unit.channels * g.h.kernel * g.tap_pitch(); i += blockDim.x) {
    int line = i;
    int tap = p.segment.remainder(line);
    tap += g.first_tap(p.segments.remainder(line));
    const bool inside = static_cast<unsigned>(tap) < static_cast<unsigned>(g.w.reach(1));
    if (!inside || p.dilation_w.remainder(tap) != 0) {
      to[i] = 0;
      continue;
    }
    const int row = p.kernel_rows.remainder(line);  // leaves the channel
    const int number = row * g.w.kernel + tap;
    to[i] = weight[static_cast<std::int64_t>(unit.first_channel + line) * count +
                   (p.mirrored ? count - 1 - number : number)];
  }
}

template <int lane_images, int columns>
using Results = float[lane_images][kRows][columns];

// The products of some quads of a row of the image, from `quad` on. Row r of results has its taps
// at taps[r], if it has any: `met` has a bit for each.
template <bool all, int lane_images, int columns>
__device__ inline void multiply_add(Results<lane_images, columns>& sums, const float4* quad,
                                    int quad_pitch, const float4* const (&taps)[kRows], int quads,
                                    unsigned met) {
#pragma unroll 1
  for (int q = 0; q < quads; ++q, quad += quad_pitch) {
    float elements[lane_images][kQuad];
#pragma unroll
    for (int i = 0; i < lane_images; ++i) {
      const float4 four = quad[i * kLanes];
      elements[i][0] = four.x, elements[i][1] = four.y, elements[i][2] = four.z,
      elements[i][3] = four.w;
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (!all && (met >> r & 1) == 0) continue;
      const float4 a = taps[r][q], b = taps[r][q + 1], c = taps[r][q + 2];
      const float window[kWindow] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w, c.x, c.y, c.z, c.w};
#pragma unroll
      for (int element = 0; element < kQuad; ++element)
#pragma unroll
        for (int i = 0; i < lane_images; ++i)
#pragma unroll
          for (int result = 0; result < columns; ++result)
            sums[i][r][result] = fmaf(elements[i][element], window[element - result + columns - 1],
                                      sums[i][r][result]);
    }
  }
}

template <int lane_images, int columns>
__global__ void __launch_bounds__(kMaxWarps* kLanes, 1)
    convolve(const __grid_constant__ Convolution p, const float* __restrict__ source,
             const float* __restrict__ weight, const float* __restrict__ bias,
             float* __restrict__ result) {
  extern __shared__ __align__(16) char shared[];
  const Geometry& g = p.g;
  auto* const elements = reinterpret_cast<float*>(shared);
  auto* const taps = reinterpret_cast<float*>(shared + g.taps_at);
  int group = static_cast<int>(blockIdx.x);
  const int first_image = p.image_blocks.short_remainder(group) * g.images;
  const int first_channel = group * g.channels;
  const Images unit{first_channel, min(g.channels, p.channels - first_channel), first_image,
                    min(g.images, p.batch - first_image), p.channels};
  load_images(unit, source, g.source_plane, p.source_columns, g.quads, g.quad_pitch, elements);
  zero_rest(elements, g.lines(), g.w.source, g.quads, g.quad_pitch);
  load_taps(p, unit, weight, taps);
  wait_for_copies(0);
  __syncthreads();

  int channel = uniform(static_cast<int>(threadIdx.x) / kLanes);
  const int tile = p.tiles.remainder(channel);
  const int first_row = p.row_groups.remainder(channel) * kRows;
  const int first_column = tile * columns;
  const int lane = threadIdx.x % kLanes;
  const bool there = channel < unit.channels;
  Results<lane_images, columns> sums = {};
  if (there) {
    // Rows of the image and quads of them that the results meet.
    const int to_row = first_row - g.h.pad, to_column = first_column - g.w.pad;
    const int last_row = min(to_row + kRows - 1 + g.h.reach(1), g.h.source);
    const int first_quad = max(to_column, 0) / kQuad;
    const int reached = min(to_column + columns - 1 + g.w.reach(1), g.w.source);
    const int quads = reached > 0 ? (reached + kQuad - 1) / kQuad - first_quad : 0;
    const auto* quad = reinterpret_cast<const float4*>(elements) +
                       (channel * g.h.source * g.quads + first_quad) * g.quad_pitch + lane;
    const float* const first_taps =
        taps + channel * g.h.kernel * g.tap_pitch() + g.taps_of(tile) + first_quad * kQuad;
#pragma unroll 1
    for (int row = max(to_row, 0); row < last_row; ++row) {
      const float4* of_row[kRows];
      unsigned met = 0;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        int tap = row - to_row - r;
        bool meets = static_cast<unsigned>(tap) < static_cast<unsigned>(g.h.reach(1)) &&
                     first_row + r < g.h.result;
        if (!meets) tap = 0;
        if (p.dilation_h.remainder(tap) != 0) meets = false;
        of_row[r] = reinterpret_cast<const float4*>(first_taps + tap * g.tap_pitch());
        met |= meets ? 1u << r : 0;
      }
      const float4* const at = quad + row * g.quads * g.quad_pitch;
      if (met == (1u << kRows) - 1) {
        multiply_add<true>(sums, at, g.quad_pitch, of_row, quads, met);
      } else if (met != 0) {
        multiply_add<false>(sums, at, g.quad_pitch, of_row, quads, met);
      }
    }
  }

  __syncthreads();
  if (there) {
    const float start = bias == nullptr ? 0.f : bias[unit.first_channel + channel];
    float* to = elements + lane * g.result_pitch + channel * g.result_plane +
                first_row * g.w.result + first_column;
#pragma unroll
    for (int i = 0; i < lane_images; ++i, to += kLanes * g.result_pitch)
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int column = 0; column < columns; ++column)
          if (first_row + r < g.h.result && first_column + column < g.w.result)
            to[r * g.w.result + column] = sums[i][r][column] + start;
  }
  __syncthreads();
  unit.for_elements(result, g.result_plane, [&](int element) {
    return [from = elements + element, pitch = g.result_pitch](int image, float* to) {
      *to = from[image * pitch];
    };
  });
}

template <int lane_images>
auto choose(int columns) {
  return columns == 7 ? convolve<lane_images, 7> : convolve<lane_images, 8>;
}

inline void launch_convolve(const Problem& problem, const Plan& plan, const Tensors& tensors,
                            cudaStream_t stream) {
  const Geometry g = geometry(problem, plan.tiling);
  const bool backward = problem.pass == Pass::backward_input;
  const auto* source = static_cast<const float*>(backward ? tensors.output : tensors.input);
  auto* result = static_cast<float*>(backward ? tensors.input : tensors.output);
  const auto kernel = g.images > kLanes ? choose<2>(g.columns) : choose<1>(g.columns);
  allow_shared(kernel, g.shared_bytes);
  kernel<<<static_cast<unsigned>(plan.blocks), plan.threads, g.shared_bytes, stream>>>(
      Convolution(g, problem), source, static_cast<const float*>(tensors.weight),
      static_cast<const float*>(tensors.bias), result);
  check_launch("batched convolve");
}

}  // namespace dwconv::batched
