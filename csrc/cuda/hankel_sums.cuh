// What the two kernels of the hankel family's weight gradient share: a block's tile of a filter,
// and what its warps do with units that are in shared memory. A row of the image meets as many rows
// of the output gradient as the tile has; of those, the rows that a warp's next row of the image
// meets, 8 further down, are the same but for 8 new ones, and stay in registers.
#pragma once

#include <iterator>
#include <utility>

#include "../families/hankel.h"
#include "divide.cuh"
#include "hankel_operands.cuh"
#include "slice_sums.cuh"

namespace dwconv::hankel {

struct WeightGradient {
  Geometry g;
  Partials partials;
  int channels, batch;
  int slices;
  Divisor tiles_w, tiles_h, slice_count, bands, spans;

  WeightGradient(const Geometry& geometry, const Problem& problem, const Plan& plan)
      : g(geometry),
        partials(partials_of(problem, plan.slices)),
        channels(static_cast<int>(problem.channels)),
        batch(static_cast<int>(problem.batch)),
        slices(static_cast<int>(plan.slices)),
        tiles_w(g.tiles_w),
        tiles_h(g.tiles_h),
        slice_count(plan.slices),
        bands(g.bands),
        spans(g.spans) {}
};

// Rows of a unit's images, and the first of its columns of the output gradient.
struct UnitRows {
  int image, images;
  RowRange source, result;
  int column;
};

// A block's tile of the filter of a channel, and its slice of the units.
template <typename S, int columns, int rows, int steps, bool runs>
class TileSums {
 public:
  using Type = typename S::Type;
  static constexpr Shape shape{columns, rows, steps};

  const WeightGradient& p;
  int tile_w, tile_h;  // its first column and row
  int slice, channel;
  int first_unit, last_unit;

  __device__ TileSums(const WeightGradient& p, char* shared, const Type* __restrict__ grad_output)
      : p(p), shared_(shared), grad_output_(grad_output) {
    int index = static_cast<int>(blockIdx.x);
    tile_w = p.tiles_w.short_remainder(index) * shape.tile_w();
    tile_h = p.tiles_h.short_remainder(index) * shape.tile_h();
    slice = p.slice_count.short_remainder(index);
    channel = index;
    first_unit = static_cast<int>(p.g.units * slice / p.slices);
    last_unit = static_cast<int>(p.g.units * (slice + 1) / p.slices);
    sums_bias_ = p.partials.bias && tile_w == 0 && tile_h == 0;
#pragma unroll
    for (int m = 0; m < columns; ++m)
#pragma unroll
      for (int n = 0; n < rows; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          sums_[m][n][i] = 0;
  }

  // Those that the tile's rows of the filter take to results, and these.
  __device__ UnitRows rows_of(int unit) const {
    const Geometry& g = p.g;
    UnitRows r;
    r.column = runs ? 0 : p.spans.short_remainder(unit) * g.span;
    const int band = p.bands.short_remainder(unit);
    r.image = unit * g.images;
    r.images = min(g.images, p.batch - r.image);
    const int low = max(band * g.rows, tile_h - g.h.pad);
    const int high = min(min((band + 1) * g.rows, g.h.source),
                         g.h.result + tile_h + shape.tile_h() - 1 - g.h.pad);
    r.source = {low, max(low, high)};
    const int first = max(r.source.first + g.h.pad - tile_h - shape.tile_h() + 1, 0);
    r.result = {first, max(first, min(r.source.last + g.h.pad - tile_h, g.h.result))};
    return r;
  }

  // A warp's part of a unit: every eighth row of the image from `first` on. Of the unit's first
  // image, rows of the output gradient are at `gradients`, and `row_at(image)` tells where the
  // first row is of an image, from the first column on that the tile sees.
  template <typename RowAt>
  __device__ void add(const UnitRows& r, int first, std::uint32_t gradients, const RowAt& row_at,
                      ImageRows<runs>& image_rows) {
    const Geometry& g = p.g;
    if (first >= r.source.count()) return;
    const int count = (r.source.count() - first - 1) / kWarps + 1;
    // The row of the output gradient that filter row tile_h takes the first row to, less the
    // lane's.
    const int lane_row = static_cast<int>(threadIdx.x) % 8;
    const int result_row = r.source.first + first + g.h.pad - tile_h - lane_row - r.result.first;
    const std::uint32_t result_lane = threadIdx.x % 32 / 8 * 16;
    const std::uint32_t zeros = shared_address(shared_ + g.zeros_at) + result_lane;
#pragma unroll 1
    for (int image = 0; image < r.images; ++image) {
      const std::uint32_t first_row = row_at(image) + first * g.source_pitch;
#pragma unroll 1
      for (int chunk = 0; chunk < g.chunks; ++chunk) {
        products_ += steps * count;
        if (products_ > kMostSteps) {
          flush();
          products_ = steps * count;
        }
        const int column = chunk * steps * kStep;
        const std::uint32_t source = first_row + 2 * column;
        const std::uint32_t gradient =
            gradients + image * g.result_image_bytes + 2 * column + result_lane;
        // Of the last product, 8 columns may lie beyond the row's end.
        const bool half = g.span - column <= steps * kStep - kStep / 2;
        const Chunk rows_of_chunk{image_rows.begin(source, tile_w - g.w.pad + column),
                                  gradient,
                                  zeros,
                                  result_row,
                                  r.result.count(),
                                  count};
        half ? add_rows<true>(rows_of_chunk, image_rows)
             : add_rows<false>(rows_of_chunk, image_rows);
      }
    }
  }

  // A thread's part of a unit's bias gradient, of which bands have equal shares of rows.
  __device__ void add_bias(int unit) {
    if (!sums_bias_) return;
    const Geometry& g = p.g;
    if (p.spans.short_remainder(unit) != 0) return;
    const int band = p.bands.short_remainder(unit);
    const int share = ceil_div(g.h.result, g.bands);
    const int first = min(band * share, g.h.result), last = min(first + share, g.h.result);
    const int images = min(g.images, p.batch - unit * g.images);
#pragma unroll 1
    for (int i = 0; i < images; ++i) {
      const std::int64_t plane =
          static_cast<std::int64_t>(unit * g.images + i) * p.channels + channel;
      const Type* from = grad_output_ + (plane * g.h.result + first) * g.w.result;
      for (int at = threadIdx.x; at < (last - first) * g.w.result; at += kThreads)
        bias_sum_ += S::widen(from[at]);
    }
  }

  // After the last unit: the sums of all warps, in their order.
  __device__ void finish(float* __restrict__ partial, const Gradients<S>& result) {
    flush();
    const SliceSink<S> sink(p.partials, p.slices, slice, partial, result);
    __syncthreads();
    float* const all = reinterpret_cast<float*>(shared_ + p.g.sums_at);
    for (int i = threadIdx.x; i < shape.tile_w() * shape.tile_h(); i += kThreads) {
      const int column = i % shape.tile_w(), row = i / shape.tile_w();
      if (tile_h + row >= p.g.h.kernel || tile_w + column >= p.g.w.kernel) continue;
      float sum = 0;
#pragma unroll
      for (int k = 0; k < kWarps; ++k)
        sum += all[k * sums_of(shape) + column * sums_pitch(shape) + row];
      sink.put(channel, (tile_h + row) * p.g.w.kernel + tile_w + column, sum);
    }
    if (sums_bias_) sink.put_bias(channel, bias_sum_, all);
  }

 private:
  // Columns of rows that a warp multiplies at once: where the lane reads its first row of the
  // image, and rows of the output gradient, and which of them the lane's is that the former meets.
  struct Chunk {
    std::uint32_t source, gradient, zeros;
    int result_row, result_rows, count;
  };

  // `half`: whether of the last product 8 columns are left out.
  template <bool half>
  __device__ void add_rows(const Chunk& chunk, ImageRows<runs>& image_rows) {
    const int source_step = kWarps * p.g.source_pitch;
    std::uint32_t source = chunk.source;
    const std::uint32_t last = source + (chunk.count - 1) * source_step;
    image_rows.begin_copy(source);
    RowBlocks<steps> grad[rows];
    int row = chunk.result_row - (rows - 1) * kTileH;
    const auto load_row = [&](RowBlocks<steps>& words) {
      const bool there = static_cast<unsigned>(row) < static_cast<unsigned>(chunk.result_rows);
      words.load(there ? chunk.gradient + row * p.g.result_pitch : chunk.zeros);
      row += kTileH;
    };
#pragma unroll
    for (int n = 1; n < rows; ++n)
      load_row(grad[n]);
    image_rows.end_copy();
    int left = chunk.count;
    while (true) {
#pragma unroll
      for (int u = 0; u < rows; ++u) {
        std::uint32_t image[columns + steps - 1][4];
        image_rows.load(image);
        load_row(grad[u]);
        source = min(source + source_step, last);
        image_rows.begin_copy(source);
#pragma unroll
        for (int step = 0; step < steps; ++step)
#pragma unroll
          for (int n = 0; n < rows; ++n) {
            const std::uint32_t (&words)[2] = grad[(u - n + rows) % rows].steps[step];
#pragma unroll
            for (int m = 0; m < columns; ++m) {
              const std::uint32_t (&operand)[4] = image[m + step];
              if (half && step == steps - 1) {
                const std::uint32_t two[2] = {operand[0], operand[1]};
                multiply_add<Type>(sums_[m][n], two, words[0], sums_[m][n]);
              } else {
                multiply_add<Type>(sums_[m][n], operand, words, sums_[m][n]);
              }
            }
          }
        image_rows.end_copy();
        if (--left == 0) return;
      }
    }
  }

  // A warp's sums go to others in shared memory.
  __device__ void flush() {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    float* const mine = reinterpret_cast<float*>(shared_ + p.g.sums_at) + warp * sums_of(shape);
#pragma unroll
    for (int m = 0; m < columns; ++m)
#pragma unroll
      for (int n = 0; n < rows; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int column = m * kStep + ImageRows<runs>::column_of(lane / 4) + 2 * (i / 2);
          mine[column * sums_pitch(shape) + n * kTileH + lane % 4 * 2 + i % 2] += sums_[m][n][i];
          sums_[m][n][i] = 0;
        }
  }

  char* shared_;
  const Type* __restrict__ grad_output_;
  float sums_[columns][rows][4];
  int products_ = 0;  // that were added up since the last flush, of each sum
  float bias_sum_ = 0;
  bool sums_bias_;
};

// `launch.template operator()<columns, rows, steps>()` for a shape that comes at run time.
template <typename Launch>
void for_shape(const Shape& shape, const Launch& launch) {
  const auto consider = [&]<int columns, int rows, int steps>() {
    if constexpr (steps <= most_at_once({columns, rows})) {
      if (shape == Shape{columns, rows, steps}) {
        launch.template operator()<columns, rows, steps>();
      }
    }
  };
  [&]<int... i>(std::integer_sequence<int, i...>) {
    (consider.template operator()<kTiles[i].columns, kTiles[i].rows, 2>(), ...);
    (consider.template operator()<kTiles[i].columns, kTiles[i].rows, 3>(), ...);
    (consider.template operator()<kTiles[i].columns, kTiles[i].rows, 4>(), ...);
  }(std::make_integer_sequence<int, std::size(kTiles)>{});
}

}  // namespace dwconv::hankel
