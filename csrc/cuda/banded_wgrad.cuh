// The banded family: weight gradient. A row of the image meets as many rows of the output gradient
// as the tile of the filter has; of those, the rows that a warp's next row of the image meets, 8
// further down, are the same but for 8 new ones, and stay in registers.
#pragma once

#include "../families/banded_wgrad.h"
#include "banded.h"
#include "mma.cuh"
#include "row_copies.cuh"
#include "slice_sums.cuh"

namespace dwconv::banded {

struct WeightGradient {
  SumGeometry g;
  Partials partials;
  int channels, batch;
  int slices;
  int source_bytes, result_bytes;  // that rows can be copied in at a time
  int zero;                        // which the compiler does not know
  Divisor tiles_w, tiles_h, slice_count, bands;

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
        bands(g.bands) {}
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

  __device__ void load(std::uint32_t at) {
#pragma unroll
    for (int i = 0; i < blocks; ++i) {
      words[i][0] = load_shared_word(at + 16 * i);
      words[i][1] = load_shared_word(at + 16 * i + 4);
    }
  }
  __device__ std::uint32_t block(int i, std::uint32_t selector) const {
    return __byte_perm(words[i][0], words[i][1], selector);
  }
};

// Blocks of 8 columns of a row of the output gradient for so many products.
template <int count>
struct GradientRow {
  std::uint32_t steps[count][2];

  // Lane i reads row i % 8 of block i / 8, from `at` on.
  __device__ void load(std::uint32_t at) {
#pragma unroll
    for (int i = 0; i + 1 < count; i += 2) {
      std::uint32_t words[4];
      load_matrices(words, at + i * 2 * kStep);
#pragma unroll
      for (int k = 0; k < 4; ++k)
        steps[i + k / 2][k % 2] = words[k];
    }
    if constexpr (count % 2 == 1) load_matrices(steps[count - 1], at + (count - 1) * 2 * kStep);
  }
};

template <typename S, int columns, int rows, int steps>
__global__ void __launch_bounds__(kSumThreads, kSumBlocks)
    sum_products(const __grid_constant__ WeightGradient p,
                 const typename S::Type* __restrict__ input,
                 const typename S::Type* __restrict__ grad_output, float* __restrict__ partial,
                 const Gradients<S> result) {
#if __CUDA_ARCH__ >= 800
  using Type = typename S::Type;
  constexpr SumShape shape{columns, rows, steps};
  constexpr int quads = columns + steps - 1;  // of blocks of a row, that products see
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
  // Columns of the image that the tile's rows see. What lies outside are zeros from the beginning.
  const int first_inside = max(first_column, 0);
  const int columns_inside =
      max(min(first_column + g.source_pitch / 2, g.w.source) - first_inside, 0);
  const Pieces source_pieces(columns_inside, p.source_bytes, g.w.source % 2 != 0);
  const Pieces result_pieces(g.w.result, p.result_bytes, g.w.result % 2 != 0);
  // A unit's rows of the images and of their output gradients.
  const std::int64_t source_plane = static_cast<std::int64_t>(g.h.source) * g.w.source;
  const std::int64_t result_plane = static_cast<std::int64_t>(g.h.result) * g.w.result;
  const auto with_rows = [&](int number, const auto& act) {
    const UnitRows r = rows_of(first_unit + number);
    char* stage = stage_of(number);
    const std::int64_t plane = static_cast<std::int64_t>(r.image) * p.channels + channel;
    act(RowsToCopy{reinterpret_cast<const std::uint16_t*>(input) + plane * source_plane +
                       static_cast<std::int64_t>(r.source.first) * g.w.source + first_inside,
                   stage + 2 * (first_inside - first_column), g.w.source, g.source_pitch,
                   p.channels * source_plane, g.image_bytes, r.source.count(), r.images},
        source_pieces);
    act(RowsToCopy{reinterpret_cast<const std::uint16_t*>(grad_output) + plane * result_plane +
                       static_cast<std::int64_t>(r.result.first) * g.w.result,
                   stage + g.result_at, g.w.result, g.result_pitch, p.channels * result_plane,
                   g.image_bytes, r.result.count(), r.images},
        result_pieces);
  };
  const auto load = [&](int number) {
    if (first_unit + number < last_unit) with_rows(number, copy_rows);
    commit_copies();
  };
  const auto place = [&](int number) {
    with_rows(number, [](const RowsToCopy& r, const Pieces& pieces) {
      if (pieces.in_words) place_rows(r, pieces);
    });
    __syncthreads();
  };

  zero_shared(shared, g.shared_bytes);
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

  // One unit ahead is loaded, by code that is there once.
#pragma unroll 1
  for (int number = -1; first_unit + number < last_unit; ++number) {
    if (number >= 0) {
      wait_for_copies(0);
      __syncthreads();
    }
    load(number + 1);
    if (number < 0) continue;
    if (source_pieces.in_words || result_pieces.in_words) place(number);
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
      for (int chunk = 0; chunk < g.chunks; ++chunk) {
        products += steps * count;
        if (products > kMostSteps) {
          flush();
          products = steps * count;
        }
        const int column = chunk * steps * kStep;
        std::uint32_t source =
            shared_address(stage) + first * g.source_pitch + 2 * column + source_lane;
        const std::uint32_t gradient =
            shared_address(stage + g.result_at) + 2 * column + result_lane;
        const std::uint32_t zeros = shared_address(shared) + result_lane;
        GradientRow<steps> grad[rows];
        const auto load_row = [&](GradientRow<steps>& words, int row) {
          const bool there = static_cast<unsigned>(row) < static_cast<unsigned>(r.result.count());
          words.load(there ? gradient + row * g.result_pitch : zeros);
        };
#pragma unroll
        for (int n = 1; n < rows; ++n)
          load_row(grad[rows - n], result_row - n * kTileH);
        // Of the last product, 8 columns may lie beyond the row's end.
        const bool half = g.w.result - column <= steps * kStep - kStep / 2;
        int row = result_row;
#pragma unroll 1
        for (int left = count; left > 0;) {
#pragma unroll
          for (int u = 0; u < rows; ++u) {
            if (left-- <= 0) break;
            load_row(grad[u], row);
            ShiftedRow<2 * quads + 1> image_row;
            image_row.load(source);
            std::uint32_t image[quads][4];
#pragma unroll
            for (int q = 0; q < quads; ++q) {
              image[q][0] = image_row.block(2 * q, selector);
              image[q][1] = image_row.block(2 * q + 1, selector);
              image[q][2] = image_row.block(2 * q + 1, other_selector);
              image[q][3] = image_row.block(2 * q + 2, other_selector);
            }
            const auto multiply = [&](int step) {
#pragma unroll
              for (int n = 0; n < rows; ++n) {
                const std::uint32_t (&words)[2] = grad[(u - n + rows) % rows].steps[step];
#pragma unroll
                for (int m = 0; m < columns; ++m)
                  multiply_add<Type>(sums[m][n], image[m + step], words, sums[m][n]);
              }
            };
#pragma unroll
            for (int step = 0; step < steps - 1; ++step)
              multiply(step);
            if (half) {
#pragma unroll
              for (int n = 0; n < rows; ++n)
#pragma unroll
                for (int m = 0; m < columns; ++m) {
                  const std::uint32_t (&quad)[4] = image[m + steps - 1];
                  const std::uint32_t two[2] = {quad[0], quad[1]};
                  multiply_add<Type>(sums[m][n], two,
                                     grad[(u - n + rows) % rows].steps[steps - 1][0], sums[m][n]);
                }
            } else {
              multiply(steps - 1);
            }
            row += kSumWarps;
            source += kSumWarps * g.source_pitch;
          }
        }
      }
    }
    if (sums_bias) bias_sum += sum_of_rows(first_unit + number);
  }
  flush();

  const SliceSink<S> sink(p.partials, p.slices, slice, partial, result);
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
    sink.put(channel, (tile_h + row) * g.w.kernel + tile_w + column, sum);
  }
  if (sums_bias) sink.put_bias(channel, bias_sum, all);
#endif
}

template <typename S>
using SumKernel = void (*)(WeightGradient, const typename S::Type*, const typename S::Type*, float*,
                           Gradients<S>);

template <typename S>
SumKernel<S> choose_sums(const SumShape& shape) {
  SumKernel<S> found = nullptr;
  const auto consider = [&]<int columns, int rows, int steps>() {
    if (shape.columns == columns && shape.rows == rows && shape.steps == steps)
      found = sum_products<S, columns, rows, steps>;
  };
  const auto consider_rows = [&]<int columns, int rows>() {
    consider.template operator()<columns, rows, kFewestAtOnce>();
    consider.template operator()<columns, rows, 3>();
    consider.template operator()<columns, rows, kMostAtOnce>();
  };
  const auto consider_columns = [&]<int columns>() {
    consider_rows.template operator()<columns, 2>();
    consider_rows.template operator()<columns, 4>();
  };
  consider_columns.template operator()<1>();
  consider_columns.template operator()<2>();
  return found;
}

template <DType dtype>
void launch_sum_products(const Problem& problem, const Plan& plan, const Tensors& tensors,
                         cudaStream_t stream) {
  using S = Scalar<dtype>;
  const SumGeometry g = sum_geometry(problem, plan.tiling);
  const WeightGradient p(g, problem, plan, piece_bytes(tensors.input, g.w.source),
                         piece_bytes(tensors.output, g.w.result));
  launch_slices<S>("banded sum_products", choose_sums<S>(g.shape), p, plan, tensors, stream);
}

}  // namespace dwconv::banded
