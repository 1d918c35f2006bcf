// The direct family: forward pass, and input gradient, which is one with the filter turned round.
//
// A warp goes over the rows of the image that its positions meet. In a row it takes 8 taps of each
// filter row that the row meets at a time: 64 products of each of a thread's rows of results, for
// which it reads 16 columns of the image and 8 taps, which are the same for all lanes.
#pragma once

#include "check.cuh"
#include "direct.h"
#include "direct_rows.cuh"

namespace dwconv::direct {

struct Convolution {
  Geometry g;
  bool mirrored;  // turn the filters round
  bool source_in_quads, result_in_quads;
  int channels, batch;
  int filter_rows, filter_columns;  // with taps that meet nothing
  int summed_rows;                  // of the image, before sums go to others
  Divisor parts, segments, image_blocks;
  SmallDivisor tiles, row_quads, tap_pitch;

  Convolution(const Geometry& geometry, const Problem& problem, bool source_in_quads,
              bool result_in_quads)
      : g(geometry),
        mirrored(problem.pass == Pass::backward_input),
        source_in_quads(source_in_quads),
        result_in_quads(result_in_quads),
        channels(static_cast<int>(problem.channels)),
        batch(static_cast<int>(problem.batch)),
        filter_rows(static_cast<int>(problem.h.kernel)),
        filter_columns(static_cast<int>(problem.w.kernel)),
        summed_rows(std::max(kMostProducts / g.w.kernel, 1)),
        parts(g.parts),
        segments(g.segments),
        image_blocks(g.image_blocks),
        tiles(g.tiles),
        row_quads(g.row_quads()),
        tap_pitch(g.tap_pitch) {}
};

// 16 columns of a row of the image: those that 8 results and 8 taps see. Of 16 floats in shared
// memory every second quad lies elsewhere, see Geometry.
struct Window16 {
  float columns[2 * kColumns];

  __device__ void load(const float4* even, const float4* odd) {
    store(0, even[0]);
    store(1, odd[0]);
    store(2, even[1]);
    store(3, odd[1]);
  }

 private:
  __device__ void store(int quad, const float4& of) {
    columns[4 * quad] = of.x;
    columns[4 * quad + 1] = of.y;
    columns[4 * quad + 2] = of.z;
    columns[4 * quad + 3] = of.w;
  }
};

template <int rows>
using Results = float[rows][kColumns];

// Adds the products of so many taps of each filter row: row r of results takes the filter row that
// is r before `row`, if there is one. `filter` is that row's.
template <int rows, int taps, bool all>
__device__ inline void multiply_add(Results<rows>& sums, const Window16& window,
                                    const float* filter, int pitch, int row, int filter_rows) {
#pragma unroll
  for (int r = 0; r < rows; ++r) {
    if (!all && static_cast<unsigned>(row - r) >= static_cast<unsigned>(filter_rows)) continue;
    const auto* quads = reinterpret_cast<const float4*>(filter - r * pitch);
    float4 tap[2] = {quads[0], {}};
    if constexpr (taps > kQuad) tap[1] = quads[1];
    const float of[8] = {tap[0].x, tap[0].y, tap[0].z, tap[0].w,
                         tap[1].x, tap[1].y, tap[1].z, tap[1].w};
#pragma unroll
    for (int i = 0; i < taps; ++i)
#pragma unroll
      for (int column = 0; column < kColumns; ++column)
        sums[r][column] = fmaf(window.columns[column + i], of[i], sums[r][column]);
  }
}

// The taps that are left of a filter row after its chunks of 8. None is made up: a zero would turn
// an Inf of the image into a NaN.
template <int rows>
__device__ inline void multiply_add_rest(Results<rows>& sums, const Window16& window, int taps,
                                         const float* filter, int pitch, int row, int filter_rows) {
  const auto add = [&]<int count>() {
    multiply_add<rows, count, false>(sums, window, filter, pitch, row, filter_rows);
  };
  switch (taps) {
    case 1:
      return add.template operator()<1>();
    case 2:
      return add.template operator()<2>();
    case 3:
      return add.template operator()<3>();
    case 4:
      return add.template operator()<4>();
    case 5:
      return add.template operator()<5>();
    case 6:
      return add.template operator()<6>();
    case 7:
      return add.template operator()<7>();
  }
}

template <typename S, int rows>
__global__ void __launch_bounds__(kThreads, kResident)
    convolve(const __grid_constant__ Convolution p, const typename S::Type* __restrict__ source,
             const typename S::Type* __restrict__ weight, const typename S::Type* __restrict__ bias,
             typename S::Type* __restrict__ result) {
  using Type = typename S::Type;
  extern __shared__ __align__(16) char shared[];
  const Geometry& g = p.g;
  const int lane = threadIdx.x % 32, warp = uniform(static_cast<int>(threadIdx.x) / 32);
  const auto* const zeros = reinterpret_cast<const float4*>(shared);
  auto* const filter = reinterpret_cast<float*>(shared + g.filter_at);
  auto* const stage = reinterpret_cast<float4*>(shared + g.rows_at);

  int index = static_cast<int>(blockIdx.x);
  const int first_column = p.parts.short_remainder(index) * g.width;
  const int first_row = p.segments.short_remainder(index) * g.rows;
  const int first_image = p.image_blocks.short_remainder(index) * g.images;
  const int channel = index;
  const int images = min(g.images, p.batch - first_image);
  const int last_row = min(first_row + g.rows, g.h.result);
  const std::int64_t first_plane = static_cast<std::int64_t>(first_image) * p.channels + channel;
  // Rows of the image that the unit reads.
  const int top = max(first_row - g.h.pad, 0);
  const int source_rows = max(min(last_row - g.h.pad + g.h.kernel - 1, g.h.source) - top, 0);

  const std::int64_t source_plane = static_cast<std::int64_t>(g.h.source) * g.w.source;
  const Rows<Type> unit_rows{source + first_plane * source_plane + top * g.w.source,
                             p.channels * source_plane,
                             images,
                             source_rows,
                             g.w.source,
                             first_column - g.w.pad,
                             g.w.source,
                             p.source_in_quads};
  stage_rows<S>(unit_rows, p.row_quads, [&](int image, int row, int quad) {
    return stage + image * g.image_quads + row * g.row_quads() + (quad & 1) * g.half + quad / 2;
  });
  const Type* const taps =
      weight + static_cast<std::int64_t>(channel) * p.filter_rows * p.filter_columns;
  const auto load_tap = [&](int index) {
    const int column = p.tap_pitch.remainder(index);
    if (column >= g.w.kernel) return 0.f;
    const int tap = (g.first_tap_row + index) * p.filter_columns + g.first_tap + column;
    return S::widen(taps[p.mirrored ? p.filter_rows * p.filter_columns - 1 - tap : tap]);
  };
  in_batches<4>(g.h.kernel * g.tap_pitch, load_tap,
                [&](int index, float tap) { filter[index] = tap; });
  for (int i = threadIdx.x; i < g.row_quads(); i += kThreads)
    reinterpret_cast<float4*>(shared)[i] = float4{};
  __syncthreads();

  const float start = bias == nullptr ? 0.f : S::widen(bias[channel]);
  const SmallDivisor image_count(images);
  const int groups = (last_row - first_row + rows - 1) / rows;
  const int positions = p.tiles.value() * images * groups;
  const auto group_of = [&](int position) {
    return image_count.quotient(p.tiles.quotient(position));
  };
  const int whole_chunks = g.w.kernel / kColumns, rest = g.w.kernel % kColumns;

#pragma unroll 1
  for (int task = warp; task * 32 < positions; task += kWarps) {
    // Of lanes that there is no position for, the last one's.
    int group = min(task * 32 + lane, positions - 1);
    const int tile = p.tiles.remainder(group);
    const int image = image_count.remainder(group);
    // Row j of the image is the one that filter row j of the first result meets: which of them any
    // lane has.
    const int row = first_row + group * rows - g.h.pad - top;
    const int to_top = first_row - g.h.pad - top;
    const int low = to_top + group_of(task * 32) * rows;
    const int high = to_top + group_of(min(task * 32 + 31, positions - 1)) * rows;
    const int first = max(0, -high);
    const int last = min(g.h.kernel + rows - 1, source_rows - low);

    Results<rows> sums = {}, totals = {};
    int at_row = row + first;
    const float4* at = stage + image * g.image_quads + at_row * g.row_quads() + tile;
    const float* taps_at = filter + first * g.tap_pitch;
    int left = p.summed_rows;
#pragma unroll 1
    for (int j = first; j < last; ++j) {
      const bool there = static_cast<unsigned>(at_row) < static_cast<unsigned>(source_rows);
      const float4* even = there ? at : zeros;
      const float4* odd = even + g.half;
      const float* chunk = taps_at;
      Window16 window;
      const auto add_chunks = [&]<bool all>() {
#pragma unroll 1
        for (int i = 0; i < whole_chunks; ++i) {
          window.load(even, odd);
          multiply_add<rows, kColumns, all>(sums, window, chunk, g.tap_pitch, j, g.h.kernel);
          ++even;
          ++odd;
          chunk += kColumns;
        }
      };
      if (j >= rows - 1 && j < g.h.kernel) {
        add_chunks.template operator()<true>();
      } else {
        add_chunks.template operator()<false>();
      }
      if (rest > 0) {
        window.load(even, odd);
        multiply_add_rest<rows>(sums, window, rest, chunk, g.tap_pitch, j, g.h.kernel);
      }
      if (--left == 0) {
        left = p.summed_rows;
#pragma unroll
        for (int r = 0; r < rows; ++r)
#pragma unroll
          for (int i = 0; i < kColumns; ++i) {
            totals[r][i] += sums[r][i];
            sums[r][i] = 0;
          }
      }
      ++at_row;
      at += g.row_quads();
      taps_at += g.tap_pitch;
    }

    if (task * 32 + lane >= positions) continue;
    const int column = first_column + tile * kColumns;
    const int columns = min(g.width, g.w.result - first_column) - tile * kColumns;
    int result_row = first_row + group * rows;
    Type* to =
        result +
        ((first_plane + static_cast<std::int64_t>(image) * p.channels) * g.h.result + result_row) *
            g.w.result +
        column;
#pragma unroll
    for (int r = 0; r < rows; ++r, ++result_row, to += g.w.result) {
      if (result_row >= last_row) break;
      const auto rounded = [&](int i) { return S::round(totals[r][i] + sums[r][i] + start); };
      if (p.result_in_quads) {
#pragma unroll
        for (int i = 0; i < kColumns; i += kQuad)
          if (i < columns)
            *reinterpret_cast<Quad<Type>*>(to + i) = {rounded(i), rounded(i + 1), rounded(i + 2),
                                                      rounded(i + 3)};
      } else {
#pragma unroll
        for (int i = 0; i < kColumns; ++i)
          if (i < columns) to[i] = rounded(i);
      }
    }
  }
}

template <typename S>
using Kernel = void (*)(Convolution, const typename S::Type*, const typename S::Type*,
                        const typename S::Type*, typename S::Type*);

template <typename S>
Kernel<S> choose_kernel(int rows) {
  return rows == 4 ? convolve<S, 4> : rows == 2 ? convolve<S, 2> : convolve<S, 1>;
}

template <DType dtype>
void launch_convolve(const Problem& problem, const Plan& plan, const Tensors& tensors,
                     cudaStream_t stream) {
  using S = Scalar<dtype>;
  using Type = typename S::Type;
  const Geometry g = geometry(problem, plan.tiling);
  const bool backward = problem.pass == Pass::backward_input;
  const auto* source = static_cast<const Type*>(backward ? tensors.output : tensors.input);
  auto* result = static_cast<Type*>(backward ? tensors.input : tensors.output);
  const Convolution p(g, problem, has_quads(source, g.w.source), has_quads(result, g.w.result));
  const Kernel<S> kernel = choose_kernel<S>(g.tile_rows);
  allow_shared(kernel, g.shared_bytes);
  kernel<<<static_cast<unsigned>(plan.blocks), kThreads, g.shared_bytes, stream>>>(
      p, source, static_cast<const Type*>(tensors.weight), static_cast<const Type*>(tensors.bias),
      result);
  check_launch("direct convolve");
}

}  // namespace dwconv::direct
