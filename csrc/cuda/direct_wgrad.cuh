// The direct family: weight gradient. A lane's 4 rows x 8 columns of the filter meet a row of the
// image and as many rows of the output gradient; the image's 16 columns that 8 of those rows' see
// are half the same as the next 8 columns'.
#pragma once

#include "../families/direct_wgrad.h"
#include "direct.h"
#include "direct_rows.cuh"
#include "slice_sums.cuh"

namespace dwconv::direct {

struct WeightGradient {
  SumGeometry g;
  Partials partials;
  bool source_in_quads, result_in_quads;
  int channels, batch, slices;
  int filter_rows, filter_columns;  // with taps that meet nothing
  Divisor tiles_w, tiles_h, slice_count, bands, parts;
  SmallDivisor lane_rows, lane_count, source_quads, result_quads;

  WeightGradient(const SumGeometry& geometry, const Problem& problem, const Plan& plan,
                 bool source_in_quads, bool result_in_quads)
      : g(geometry),
        partials(partials_of(problem, plan.slices)),
        source_in_quads(source_in_quads),
        result_in_quads(result_in_quads),
        channels(static_cast<int>(problem.channels)),
        batch(static_cast<int>(problem.batch)),
        slices(static_cast<int>(plan.slices)),
        filter_rows(static_cast<int>(problem.h.kernel)),
        filter_columns(static_cast<int>(problem.w.kernel)),
        tiles_w(g.tiles_w),
        tiles_h(g.tiles_h),
        slice_count(plan.slices),
        bands(g.bands),
        parts(g.parts),
        lane_rows(g.lanes.rows),
        lane_count(g.lanes.count()),
        source_quads(g.source_pitch),
        result_quads(g.result_pitch) {}
};

// What a block has in shared memory at a time.
struct SumUnit {
  int image, images, band;
  int first_column;  // of the output gradient
  RowRange source, result;
};

__device__ inline void load_columns(float (&columns)[kColumns], const float4* from) {
  const float4 low = from[0], high = from[1];
  columns[0] = low.x;
  columns[1] = low.y;
  columns[2] = low.z;
  columns[3] = low.w;
  columns[4] = high.x;
  columns[5] = high.y;
  columns[6] = high.z;
  columns[7] = high.w;
}

// Adds the products of 8 columns of the output gradient, of each of a lane's rows that `rows` has a
// bit for. Of the image, `low` are the columns that the first one's taps see, `high` the next 8.
template <bool all>
__device__ inline void multiply_add(float (&sums)[kTapRows][kColumns], const float (&low)[kColumns],
                                    const float (&high)[kColumns],
                                    const float4* const (&gradient)[kTapRows], int at, int rows) {
#pragma unroll
  for (int r = 0; r < kTapRows; ++r) {
    if (!all && (rows >> r & 1) == 0) continue;
    float grad[kColumns];
    load_columns(grad, gradient[r] + at);
#pragma unroll
    for (int i = 0; i < kColumns; ++i)
#pragma unroll
      for (int tap = 0; tap < kColumns; ++tap) {
        const float column = tap + i < kColumns ? low[tap + i] : high[tap + i - kColumns];
        sums[r][tap] = fmaf(column, grad[i], sums[r][tap]);
      }
  }
}

// A row of the image: so many steps of 8 columns of the output gradient.
template <bool all>
__device__ inline void multiply_add_row(float (&sums)[kTapRows][kColumns], const float4* source,
                                        const float4* const (&gradient)[kTapRows], int steps,
                                        int rows) {
  float even[kColumns], odd[kColumns];
  load_columns(even, source);
  // Two steps, so that the columns that the next one sees as well need not move.
#pragma unroll 1
  for (int step = 0;; step += 2) {
    load_columns(odd, source + 2 * step + 2);
    multiply_add<all>(sums, even, odd, gradient, 2 * step, rows);
    if (step + 1 >= steps) break;
    load_columns(even, source + 2 * step + 4);
    multiply_add<all>(sums, odd, even, gradient, 2 * step + 2, rows);
    if (step + 2 >= steps) break;
  }
}

template <typename S>
__global__ void __launch_bounds__(kThreads, kResident)
    sum_rows(const __grid_constant__ WeightGradient p, const typename S::Type* __restrict__ input,
             const typename S::Type* __restrict__ grad_output, float* __restrict__ partial,
             const Gradients<S> result) {
  using Type = typename S::Type;
  extern __shared__ __align__(16) char shared[];
  const SumGeometry& g = p.g;
  const Lanes& lanes = g.lanes;
  const int lane = threadIdx.x % 32, warp = uniform(static_cast<int>(threadIdx.x) / 32);
  const auto* const zeros = reinterpret_cast<const float4*>(shared);
  auto* const others = reinterpret_cast<float*>(shared + g.sums_at);
  auto* const source_stage = reinterpret_cast<float4*>(shared + g.stage_at);
  auto* const result_stage = reinterpret_cast<float4*>(shared + g.result_at);
  let_next_kernel_start();

  int index = static_cast<int>(blockIdx.x);
  const int tile_w = p.tiles_w.short_remainder(index) * lanes.tile_w();
  const int tile_h = p.tiles_h.short_remainder(index) * lanes.tile_h();
  const int slice = p.slice_count.short_remainder(index);
  const int channel = index;
  const int first_unit = static_cast<int>(g.units * slice / p.slices);
  const int last_unit = static_cast<int>(g.units * (slice + 1) / p.slices);
  const std::int64_t source_plane = static_cast<std::int64_t>(g.h.source) * g.w.source;
  const std::int64_t result_plane = static_cast<std::int64_t>(g.h.result) * g.w.result;

  const auto unit_at = [&](int index) {
    SumUnit u;
    u.first_column = p.parts.short_remainder(index) * g.width;
    u.band = p.bands.short_remainder(index);
    u.image = index * g.images;
    u.images = min(g.images, p.batch - u.image);
    // Rows of the image that the tile's rows of the filter take to results, and those results'.
    const int low = max(u.band * g.rows, tile_h - g.h.pad);
    const int high = min(min((u.band + 1) * g.rows, g.h.source),
                         g.h.result + tile_h + lanes.tile_h() - 1 - g.h.pad);
    u.source = {low, max(low, high)};
    const int first = max(low + g.h.pad - tile_h - lanes.tile_h() + 1, 0);
    u.result = {first, max(first, min(u.source.last + g.h.pad - tile_h, g.h.result))};
    return u;
  };
  const auto load = [&](const SumUnit& u) {
    const std::int64_t plane = static_cast<std::int64_t>(u.image) * p.channels + channel;
    const Rows<Type> source{input + plane * source_plane + u.source.first * g.w.source,
                            p.channels * source_plane,
                            u.images,
                            u.source.count(),
                            g.w.source,
                            u.first_column + tile_w - g.w.pad,
                            g.w.source,
                            p.source_in_quads};
    stage_rows<S>(source, p.source_quads, [&](int image, int row, int quad) {
      return source_stage + (image * g.rows + row) * g.source_pitch + quad;
    });
    const Rows<Type> gradient{grad_output + plane * result_plane + u.result.first * g.w.result,
                              p.channels * result_plane,
                              u.images,
                              u.result.count(),
                              g.w.result,
                              u.first_column,
                              min(u.first_column + g.width, g.w.result),
                              p.result_in_quads};
    stage_rows<S>(gradient, p.result_quads, [&](int image, int row, int quad) {
      return result_stage + (image * g.result_rows + row) * g.result_pitch + quad;
    });
  };
  // A thread's part of a unit's results, of which bands have equal shares.
  const auto sum_of_results = [&](const SumUnit& u) {
    float sum = 0;
    if (u.first_column > 0) return sum;
    const int share = ceil_div(g.h.result, g.bands);
    const int first = min(u.band * share, g.h.result), last = min(first + share, g.h.result);
#pragma unroll 1
    for (int i = 0; i < u.images; ++i) {
      const std::int64_t plane = static_cast<std::int64_t>(u.image + i) * p.channels + channel;
      const Type* from = grad_output + plane * result_plane + first * g.w.result;
      for (int at = threadIdx.x; at < (last - first) * g.w.result; at += kThreads)
        sum += S::widen(from[at]);
    }
    return sum;
  };

  // Where a lane is: its group, and in the tile. Lanes that no group has do what the first one
  // does, and are left out in the end.
  int of_group = lane;
  const int its_group = p.lane_count.quotient(lane);
  const int group = its_group < lanes.groups() ? its_group : 0;
  of_group -= its_group * lanes.count();
  const int lane_row = p.lane_rows.remainder(of_group);  // leaves the lane's columns
  const float4* const source_lane = source_stage + 2 * of_group;
  const int rows_at_once = kWarps * lanes.groups();

  float sums[kTapRows][kColumns] = {};
  // All sums go to others in shared memory, in the order of warps and groups.
  const auto flush = [&] {
    auto* const all = reinterpret_cast<float*>(source_stage);
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      all[i * kThreads + threadIdx.x] = sums[i / kColumns][i % kColumns];
      sums[i / kColumns][i % kColumns] = 0;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kSums * lanes.count(); i += kThreads) {
      int number = i;
      const int of_lane = p.lane_count.remainder(number);
      const float* from = all + number * kThreads + of_lane;
      float sum = 0;
#pragma unroll 1
      for (int at = 0; at < lanes.groups(); ++at, from += lanes.count()) {
#pragma unroll
        for (int k = 0; k < kWarps; ++k)
          sum += from[k * 32];
      }
      others[i] += sum;
    }
    __syncthreads();
  };

  for (int i = static_cast<int>(threadIdx.x); i < g.stage_at / kQuadBytes; i += kThreads)
    reinterpret_cast<float4*>(shared)[i] = float4{};
  const bool sums_bias = p.partials.bias && tile_w == 0 && tile_h == 0;
  float bias_sum = 0;
  int products = 0;  // that were added up since the last flush, of each sum

#pragma unroll 1
  for (int number = first_unit; number < last_unit; ++number) {
    const SumUnit u = unit_at(number);
    const int count = u.source.count();
    const int rows = u.images * count;
    const int more = ceil_div(rows, rows_at_once) * g.steps * kColumns;
    if (products > 0 && products + more > kMostSumProducts) {
      flush();
      products = 0;
    }
    products += more;
    load(u);
    if (sums_bias) bias_sum += sum_of_results(u);
    __syncthreads();
    const SmallDivisor row_count(max(count, 1));
    // The row of the output gradient that the lane's first row takes the unit's first row to.
    const int first_row = u.source.first + g.h.pad - tile_h - lane_row - u.result.first;
#pragma unroll 1
    for (int i = warp * lanes.groups(); i < rows; i += rows_at_once) {
      int image = min(i + group, rows - 1);
      const int row = row_count.remainder(image);
      const float4* const of_image = result_stage + image * g.result_rows * g.result_pitch;
      const float4* gradient[kTapRows];
      int meets = 0;
#pragma unroll
      for (int r = 0; r < kTapRows; ++r) {
        const int at = first_row + row - r * lanes.rows;
        const bool there =
            i + group < rows && static_cast<unsigned>(at) < static_cast<unsigned>(u.result.count());
        gradient[r] = there ? of_image + at * g.result_pitch : zeros;
        meets |= __any_sync(0xffffffffu, there) ? 1 << r : 0;
      }
      const float4* source = source_lane + (image * g.rows + row) * g.source_pitch;
      if (meets == (1 << kTapRows) - 1) {
        multiply_add_row<true>(sums, source, gradient, g.steps, meets);
      } else if (meets != 0) {
        multiply_add_row<false>(sums, source, gradient, g.steps, meets);
      }
    }
    __syncthreads();
  }
  __syncthreads();
  flush();

  const SliceSink<S> sink(p.partials, p.slices, slice, partial, result);
  const SmallDivisor filter_columns(p.filter_columns);
  for (int i = threadIdx.x; i < p.filter_rows * p.filter_columns; i += kThreads) {
    int filter_row = i;
    const int column = filter_columns.remainder(filter_row) - g.first_tap;
    const int row = filter_row - g.first_tap_row;
    if (static_cast<unsigned>(row) >= static_cast<unsigned>(g.h.kernel) ||
        static_cast<unsigned>(column) >= static_cast<unsigned>(g.w.kernel)) {
      if (tile_w == 0 && tile_h == 0) sink.put(channel, i, 0);  // the tap meets nothing
      continue;
    }
    int of_lane = row - tile_h;
    if (static_cast<unsigned>(of_lane) >= static_cast<unsigned>(lanes.tile_h()) ||
        static_cast<unsigned>(column - tile_w) >= static_cast<unsigned>(lanes.tile_w()))
      continue;
    const int first = p.lane_rows.remainder(of_lane);  // leaves which of the lane's rows it is
    const int sum = of_lane * kColumns + (column - tile_w) % kColumns;
    sink.put(channel, i,
             others[sum * lanes.count() + (column - tile_w) / kColumns * lanes.rows + first]);
  }
  if (sums_bias) sink.put_bias(channel, bias_sum, reinterpret_cast<float*>(source_stage));
}

template <DType dtype>
void launch_sum_rows(const Problem& problem, const Plan& plan, const Tensors& tensors,
                     cudaStream_t stream) {
  using S = Scalar<dtype>;
  using Type = typename S::Type;
  const SumGeometry g = sum_geometry(problem, plan.tiling);
  const auto* input = static_cast<const Type*>(tensors.input);
  const auto* grad_output = static_cast<const Type*>(tensors.output);
  const WeightGradient p(g, problem, plan, has_quads(input, g.w.source),
                         has_quads(grad_output, g.w.result));
  launch_slices<S>("direct sum_rows", sum_rows<S>, p, plan, tensors, stream);
}

}  // namespace dwconv::direct
