// The banded family: weight gradient. A row of the image meets as many rows of the output gradient
// as the tile of the filter has; of those, the rows that a warp's next row of the image meets, 8
// further down, are the same but for 8 new ones, and stay in registers.
#pragma once

#include "../families/banded_wgrad.h"
#include "banded.h"
#include "banded_alignment.cuh"
#include "banded_copies.cuh"
#include "mma.cuh"
#include "reduce.cuh"

namespace dwconv::banded {

struct WeightGradient {
  SumGeometry g;
  Partials partials;
  int channels, batch;
  int slices;
  int source_bytes, result_bytes;  // that rows can be copied in at a time
  int zero;                        // which the compiler does not know
  Divisor tiles_w, tiles_h, slice_count, bands;
  SmallDivisor source_pieces, result_pieces;  // of a row

  WeightGradient(const SumGeometry& geometry, const Problem& problem, const Plan& plan,
                 int source_bytes, int result_bytes)
      : g(geometry),
        partials(partials_of(problem, plan.slices)),
        channels(static_cast<int>(problem.channels)),
        batch(static_cast<int>(problem.batch)),
        slices(static_cast<int>(plan.slices)),
        source_bytes(source_bytes),
        result_bytes(result_bytes),
        zero(0),
        tiles_w(g.tiles_w),
        tiles_h(g.tiles_h),
        slice_count(plan.slices),
        bands(g.bands),
        source_pieces(g.source_pitch / source_bytes),
        result_pieces(g.result_pitch / result_bytes) {}
};

// Rows of a unit's images.
struct UnitRows {
  int image, images;
  RowRange source, result;
};

// A lane's part of blocks of 8 columns of an image's row, each of which 8 columns of the filter see
// one further on than the one before. Half of them begin at an odd element.
template <int blocks>
struct ShiftedRow {
  std::uint32_t words[blocks][2];

  __device__ void load(const char* at) {
#pragma unroll
    for (int i = 0; i < blocks; ++i) {
      words[i][0] = *reinterpret_cast<const std::uint32_t*>(at + 16 * i);
      words[i][1] = *reinterpret_cast<const std::uint32_t*>(at + 16 * i + 4);
    }
  }
  __device__ std::uint32_t block(int i, std::uint32_t selector) const {
    return __byte_perm(words[i][0], words[i][1], selector);
  }
};

template <typename S, int columns, int rows>
__global__ void __launch_bounds__(kSumThreads, kSumBlocks)
    sum_products(const __grid_constant__ WeightGradient p,
                 const typename S::Type* __restrict__ input,
                 const typename S::Type* __restrict__ grad_output, float* __restrict__ partial,
                 const Gradients<S> result) {
#if __CUDA_ARCH__ >= 800
  using Type = typename S::Type;
  constexpr SumShape shape{columns, rows};
  constexpr int shifted = 2 * columns + 3;  // blocks of a row that two products see
  extern __shared__ __align__(16) char shared[];
  const SumGeometry& g = p.g;
  const int lane = threadIdx.x % 32, warp = static_cast<int>(threadIdx.x) / 32;
  let_next_kernel_start();

  int index = static_cast<int>(blockIdx.x);
  const int tile_w = p.tiles_w.short_remainder(index) * shape.tile_w();
  const int tile_h = p.tiles_h.short_remainder(index) * shape.tile_h();
  const int slice = p.slice_count.short_remainder(index);
  const int channel = index;
  const int first_unit = static_cast<int>(g.units * slice / p.slices);
  const int last_unit = static_cast<int>(g.units * (slice + 1) / p.slices);
  // The first column of the tile's rows, a multiple of 8, and where its first product begins.
  const int begin = tile_w - g.w.pad;
  const int first_column = begin & ~7;
  const int offset = begin - first_column;

  const auto rows_of = [&](int unit) {
    UnitRows r;
    const int band = p.bands.short_remainder(unit);
    r.image = unit * g.images;
    r.images = min(g.images, p.batch - r.image);
    // Those that the tile's rows of the filter take to results.
    const int low = max(band * g.rows, tile_h - g.h.pad);
    const int high = min(min((band + 1) * g.rows, g.h.source),
                         g.h.result + tile_h + shape.tile_h() - 1 - g.h.pad);
    r.source = {low, max(low, high)};
    const int first = max(r.source.first + g.h.pad - tile_h - shape.tile_h() + 1, 0);
    r.result = {first, max(first, min(r.source.last + g.h.pad - tile_h, g.h.result))};
    return r;
  };
  const auto stage_of = [&](int number) {
    return shared + g.stages_at + (number & 1) * g.stage_bytes;
  };
  const auto load = [&](int number) {
    if (first_unit + number < last_unit) {
      const UnitRows r = rows_of(first_unit + number);
      char* stage = stage_of(number);
      const std::int64_t source_plane = static_cast<std::int64_t>(g.h.source) * g.w.source;
      const std::int64_t result_plane = static_cast<std::int64_t>(g.h.result) * g.w.result;
#pragma unroll 1
      for (int i = 0; i < r.images; ++i) {
        const std::int64_t plane = static_cast<std::int64_t>(r.image + i) * p.channels + channel;
        copy_rows(stage, p.source_pieces, p.source_bytes,
                  reinterpret_cast<const std::uint16_t*>(input) + plane * source_plane +
                      r.source.first * g.w.source,
                  r.source.count(), g.w.source, first_column);
        copy_rows(stage + g.result_at, p.result_pieces, p.result_bytes,
                  reinterpret_cast<const std::uint16_t*>(grad_output) + plane * result_plane +
                      r.result.first * g.w.result,
                  r.result.count(), g.w.result, 0);
        stage += g.image_bytes;
      }
    }
    commit_copies();
  };

  zero_shared(shared, g.stages_at);
  load(0);
  __syncthreads();
  float sums[columns][rows][4] = {};
  const bool sums_bias = p.partials.bias && tile_w == 0 && tile_h == 0;
  float bias_sum = 0;
  // A thread's part of a unit's results, of which bands have equal shares.
  const auto sum_of_rows = [&](int unit) {
    const int band = p.bands.short_remainder(unit);
    const int share = ceil_div(g.h.result, g.bands);
    const int first = min(band * share, g.h.result), last = min(first + share, g.h.result);
    const int images = min(g.images, p.batch - unit * g.images);
    float sum = 0;
#pragma unroll 1
    for (int i = 0; i < images; ++i) {
      const std::int64_t plane =
          static_cast<std::int64_t>(unit * g.images + i) * p.channels + channel;
      const Type* from = grad_output + (plane * g.h.result + first) * g.w.result;
      for (int at = threadIdx.x; at < (last - first) * g.w.result; at += kSumThreads)
        sum += S::widen(from[at]);
    }
    return sum;
  };
  float* const mine = reinterpret_cast<float*>(shared + g.sums_at) + warp * shape.sums();
  // The sums go to others in shared memory.
  const auto flush = [&] {
#pragma unroll
    for (int m = 0; m < columns; ++m)
#pragma unroll
      for (int n = 0; n < rows; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int column = m * kTileW + lane / 4 + 8 * (i / 2);
          mine[column * shape.pitch() + n * kTileH + lane % 4 * 2 + i % 2] += sums[m][n][i];
          sums[m][n][i] = 0;
        }
  };

  // Where a lane reads: of the image, two elements of each block; of the output gradient, a row of
  // 8 columns.
  const int element = offset + lane / 4 + lane % 4 * 2;
  const std::uint32_t selector = element % 2 != 0 ? 0x5432u : 0x3210u;
  // Another register for the same: what stands in two operands is then made twice, each in its
  // place, and never copied.
  const std::uint32_t other_selector = selector + static_cast<std::uint32_t>(p.zero);
  const int source_lane = element / 2 * 4;
  const int result_lane = lane / 8 * 16;
  int products = 0;  // that were added up since the last flush, of each sum

#pragma unroll 1
  for (int number = 0; first_unit + number < last_unit; ++number) {
    wait_for_copies(0);
    __syncthreads();
    load(number + 1);
    const UnitRows r = rows_of(first_unit + number);
    const char* stage = stage_of(number);
    const int first = warp;  // of the unit's rows
    const int count = r.source.count() > first ? (r.source.count() - first - 1) / kSumWarps + 1 : 0;
#pragma unroll 1
    for (int image = 0; image < r.images; ++image, stage += g.image_bytes) {
      // The row of the output gradient that filter row tile_h takes the first row to, less the
      // lane's.
      const int result_row = r.source.first + first + g.h.pad - tile_h - lane % 8 - r.result.first;
#pragma unroll 1
      for (int step = 0; step < g.steps; step += 2) {
        products += 2 * count;
        if (products > kMostSteps) {
          flush();
          products = 2 * count;
        }
        const int left = (g.w.result - step * kStep + 7) / 8;  // blocks of 8 columns
        const char* source = stage + first * g.source_pitch + step * 2 * kStep + source_lane;
        const std::uint32_t gradient =
            shared_address(stage + g.result_at) + step * 2 * kStep + result_lane;
        const std::uint32_t zeros = shared_address(shared) + result_lane;
        std::uint32_t grad[rows][4];
        const auto load_rows = [&](std::uint32_t (&words)[4], int row) {
          const bool there = static_cast<unsigned>(row) < static_cast<unsigned>(r.result.count());
          // Two blocks may lie beyond the row's end; no product takes them.
          load_matrices(words, there ? gradient + row * g.result_pitch : zeros);
        };
#pragma unroll
        for (int n = 1; n < rows; ++n)
          load_rows(grad[rows - n], result_row - n * kTileH);
        int row = result_row;
#pragma unroll 1
        for (int t = 0; t < count;) {
#pragma unroll
          for (int u = 0; u < rows; ++u) {
            if (t >= count) break;
            load_rows(grad[u], row);
            ShiftedRow<shifted> image_row;
            image_row.load(source);
            std::uint32_t quads[columns + 1][4];
#pragma unroll
            for (int q = 0; q <= columns; ++q) {
              quads[q][0] = image_row.block(2 * q, selector);
              quads[q][1] = image_row.block(2 * q + 1, selector);
              quads[q][2] = image_row.block(2 * q + 1, other_selector);
              quads[q][3] = image_row.block(2 * q + 2, other_selector);
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              if (half == 1 && left <= 2) continue;
#pragma unroll
              for (int n = 0; n < rows; ++n) {
                const std::uint32_t (&words)[4] = grad[(u - n + rows) % rows];
                const std::uint32_t two[2] = {words[2 * half], words[2 * half + 1]};
#pragma unroll
                for (int m = 0; m < columns; ++m)
                  multiply_add<Type>(sums[m][n], quads[m + half], two, sums[m][n]);
              }
            }
            ++t;
            row += kSumWarps;
            source += kSumWarps * g.source_pitch;
          }
        }
      }
    }
    if (sums_bias) bias_sum += sum_of_rows(first_unit + number);
  }
  flush();

  const auto put = [&](int index, float sum) {
    if (p.partials.whole) {
      result.put(channel, g.h.kernel * g.w.kernel, index, sum);
    } else {
      partial[(static_cast<std::int64_t>(channel) * p.slices + slice) * p.partials.sums() + index] =
          sum;
    }
  };
  // The sums of all warps, in their order.
  __syncthreads();
  float* const all = reinterpret_cast<float*>(shared + g.sums_at);
  for (int i = threadIdx.x; i < shape.tile_w() * shape.tile_h(); i += kSumThreads) {
    const int column = i % shape.tile_w(), row = i / shape.tile_w();
    if (tile_h + row >= g.h.kernel || tile_w + column >= g.w.kernel) continue;
    float sum = 0;
#pragma unroll
    for (int k = 0; k < kSumWarps; ++k)
      sum += all[k * shape.sums() + column * shape.pitch() + row];
    put((tile_h + row) * g.w.kernel + tile_w + column, sum);
  }
  if (sums_bias) {
    __syncthreads();
    all[threadIdx.x] = bias_sum;
    __syncthreads();
    if (warp == 0) {
      float sum = 0;
      for (int i = lane; i < kSumThreads; i += 32)
        sum += all[i];
#pragma unroll
      for (int distance = 16; distance > 0; distance /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, distance);
      if (lane == 0) put(g.h.kernel * g.w.kernel, sum);
    }
  }
#endif
}

template <typename S>
using SumKernel = void (*)(WeightGradient, const typename S::Type*, const typename S::Type*, float*,
                           Gradients<S>);

template <typename S>
SumKernel<S> choose_sums(const SumShape& shape) {
  const bool wide = shape.columns == 2;
  if (shape.rows == 1) return wide ? sum_products<S, 2, 1> : sum_products<S, 1, 1>;
  if (shape.rows == 2) return wide ? sum_products<S, 2, 2> : sum_products<S, 1, 2>;
  return wide ? sum_products<S, 2, 4> : sum_products<S, 1, 4>;
}

template <DType dtype>
void launch_sum_products(const Problem& problem, const Plan& plan, const Tensors& tensors,
                         cudaStream_t stream) {
  using S = Scalar<dtype>;
  using Type = typename S::Type;
  const SumGeometry g = sum_geometry(problem, plan.tiling);
  const WeightGradient p(g, problem, plan, copy_bytes(tensors.input, g.w.source),
                         copy_bytes(tensors.output, g.w.result));
  const Gradients<S> result{static_cast<Type*>(tensors.weight), static_cast<Type*>(tensors.bias)};
  const SumKernel<S> kernel = choose_sums<S>(g.shape);
  auto* partial = static_cast<float*>(tensors.workspace);
  allow_shared(kernel, g.shared_bytes);
  kernel<<<static_cast<unsigned>(plan.blocks), plan.threads, g.shared_bytes, stream>>>(
      p, static_cast<const Type*>(tensors.input), static_cast<const Type*>(tensors.output), partial,
      result);
  check_launch("banded sum_products");
  launch_add_partials<S>(p.partials, plan.sums_overlap, partial, result, stream);
}

}  // namespace dwconv::banded
