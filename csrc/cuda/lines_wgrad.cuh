// The lines family: weight gradient. What a warp has of 16 rows of the output gradient stays in
// registers while it goes over its rows of the filter, each of which meets another 16 rows of the
// image: those below the ones before, which are only another address.
#pragma once

#include "../families/lines.h"
#include "lines.h"
#include "lines_fragments.cuh"
#include "row_copies.cuh"
#include "slice_sums.cuh"

namespace dwconv::lines {

struct WeightGradient {
  Geometry g;
  Partials partials;
  int channels, batch;
  int slices;
  int kernel_w;                    // of the whole filter
  int source_bytes, result_bytes;  // that rows can be copied in at a time
  std::uint32_t zero;              // which the compiler does not know
  Divisor tiles_w, tiles_h, slice_count, bands;

  WeightGradient(const Geometry& geometry, const Problem& problem, const Plan& plan,
                 int source_bytes, int result_bytes)
      : g(geometry),
        partials(partials_of(problem, plan.slices)),
        channels(static_cast<int>(problem.channels)),
        batch(static_cast<int>(problem.batch)),
        slices(static_cast<int>(plan.slices)),
        kernel_w(static_cast<int>(problem.w.kernel)),
        source_bytes(std::min(source_bytes, g.source_bytes)),
        result_bytes(result_bytes),
        zero(0),
        tiles_w(g.tiles_w),
        tiles_h(g.tiles_h),
        slice_count(plan.slices),
        bands(g.bands) {}
};

// Of a unit: its images, rows of the output gradient, and the rows of the image that they meet.
struct UnitRows {
  int image, images;
  int result, results;
  int source, sources;
};

template <typename S, int spans, int blocks>
__global__ void __launch_bounds__(kThreads, kResident)
    sum_products(const __grid_constant__ WeightGradient p,
                 const typename S::Type* __restrict__ input,
                 const typename S::Type* __restrict__ grad_output, float* __restrict__ partial,
                 const Gradients<S> result) {
#if __CUDA_ARCH__ >= 800
  using Type = typename S::Type;
  constexpr Shape shape{spans, blocks};
  constexpr int half = shape.half();
  // Rows of the filter whose products take turns: each waits for the one before that adds to its
  // sums, and with one row there were three of those at most.
  constexpr int at_once = 2;
  static_assert(half % at_once == 0);
  extern __shared__ __align__(16) char shared[];
  const Geometry& g = p.g;
  const int lane = threadIdx.x % 32;
  // By a reduction, which the compiler knows to be the same for all lanes.
  const int warp = __reduce_max_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32);
  let_next_kernel_start();

  int index = static_cast<int>(blockIdx.x);
  const int tile_w = p.tiles_w.short_remainder(index) * g.tile_w;
  const int tile_h = p.tiles_h.short_remainder(index) * g.tile_h;
  const int slice = p.slice_count.short_remainder(index);
  const int channel = index;
  const int first_unit = static_cast<int>(g.units * slice / p.slices);
  const int last_unit = static_cast<int>(g.units * (slice + 1) / p.slices);
  const int split = warp / g.row_groups;
  // The warp's first row of the tile, which has as many below it in the other half; and how many it
  // has of either.
  const int warp_row = (warp - split * g.row_groups) * g.half_rows;
  const int rows_below = min(g.tile_h, g.h.kernel - tile_h) - warp_row;
  const int warp_rows[2] = {min(rows_below, g.half_rows),
                            min(rows_below - g.half_tile, g.half_rows)};

  const auto rows_of = [&](int unit) {
    UnitRows r;
    const int band = p.bands.short_remainder(unit);
    r.image = unit * g.images;
    r.images = min(g.images, p.batch - r.image);
    r.result = band * g.rows;
    r.results = min(g.rows, g.h.result - r.result);
    const int first = r.result + tile_h - g.h.pad;
    r.source = max(first, 0);
    r.sources = min(first + r.results + g.tile_h - 1, g.h.source) - r.source;
    return r;
  };
  const auto stage_of = [&](int number) {
    return shared + g.stages_at + (number & 1) * g.stage_bytes;
  };

  // The columns of the image that the tile's rows have, of which some may lie outside; those are
  // zeros from the beginning.
  const int first_column = tile_w - g.w.pad - g.lead;
  const int begin = max(first_column, 0);
  const int columns = (blocks * g.groups + 2 * spans - 1) * 8;
  const int end = max(begin, min(first_column + columns, g.w.source));
  const Pieces source_pieces(end - begin, p.source_bytes, g.w.source % 2 != 0);
  const Pieces result_pieces(g.w.result, p.result_bytes, g.w.result % 2 != 0);
  // A unit's rows of the images and of their output gradients.
  const std::int64_t source_plane = static_cast<std::int64_t>(g.h.source) * g.w.source;
  const std::int64_t result_plane = static_cast<std::int64_t>(g.h.result) * g.w.result;
  const auto with_rows = [&](int number, const auto& act) {
    const UnitRows r = rows_of(first_unit + number);
    char* stage = stage_of(number);
    const std::int64_t plane = static_cast<std::int64_t>(r.image) * p.channels + channel;
    act(RowsToCopy{reinterpret_cast<const std::uint16_t*>(input) + plane * source_plane +
                       static_cast<std::int64_t>(r.source) * g.w.source + begin,
                   stage + 2 * (begin - first_column), g.w.source, g.source_pitch,
                   p.channels * source_plane, g.source_image, r.sources, r.images},
        source_pieces);
    act(RowsToCopy{reinterpret_cast<const std::uint16_t*>(grad_output) + plane * result_plane +
                       static_cast<std::int64_t>(r.result) * g.w.result,
                   stage + g.result_at, g.w.result, g.result_pitch, p.channels * result_plane,
                   g.result_image, r.results, r.images},
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
  float sums[2][half][spans][4] = {};
  const bool sums_bias = p.partials.bias && tile_w == 0 && tile_h == 0;
  float bias_sum = 0;
  // A thread's part of a unit's rows.
  const auto sum_of_rows = [&](const UnitRows& r) {
    float sum = 0;
#pragma unroll 1
    for (int i = 0; i < r.images; ++i) {
      const std::int64_t plane = static_cast<std::int64_t>(r.image + i) * p.channels + channel;
      const Type* from = grad_output + (plane * g.h.result + r.result) * g.w.result;
      for (int at = threadIdx.x; at < r.results * g.w.result; at += kThreads)
        sum += S::widen(from[at]);
    }
    return sum;
  };
  // Of the warp's rows of the filter; and room for the sums of one of them.
  const int warp_taps = 2 * g.half_rows * g.tile_w;
  float* const mine = reinterpret_cast<float*>(shared + g.sums_at) + warp * warp_taps;
  float* const scratch = reinterpret_cast<float*>(shared + g.scratch_at) + warp * shape.scratch();
  // Adds up the diagonals.
  const auto flush = [&] {
#pragma unroll
    for (int row = 0; row < 2 * half; ++row) {
      const int h = row / half, u = row % half;
      if (u >= warp_rows[h]) continue;
#pragma unroll
      for (int m = 0; m < spans; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int column = m * 16 + lane / 4 + 8 * (i / 2);
          scratch[column * kScratchPitch + lane % 4 * 2 + i % 2] = sums[h][u][m][i];
          sums[h][u][m][i] = 0;
        }
      __syncwarp();
      for (int tap = lane; tap < g.tile_w; tap += 32) {
        float sum = 0;
#pragma unroll
        for (int n = 0; n < 8; ++n)
          sum += scratch[(g.lead + tap + n) * kScratchPitch + n];
        mine[(h * g.half_rows + u) * g.tile_w + tap] += sum;
      }
      __syncwarp();
    }
  };

  // Where lanes read: the image and the row of a step's positions, and bytes.
  const int gradient_position = lane % 16, gradient_bytes = lane / 16 * 16;
  const int gradient_image = gradient_position & (g.images - 1);
  const int gradient_row = gradient_position >> g.image_bits;
  const int image_position = lane % 8 + lane / 16 * 8, image_bytes = lane / 8 % 2 * 16;
  const int image_image = image_position & (g.images - 1);
  const int image_row = image_position >> g.image_bits;
  const std::uint32_t zeros = shared_address(shared);
  const std::uint32_t source_lane =
      zeros + g.stages_at + image_image * g.source_image + image_bytes;
  const std::uint32_t gradient_lane =
      zeros + g.stages_at + g.result_at + gradient_image * g.result_image + gradient_bytes;
  const int pitch = g.source_pitch;
  int products = 0;  // that were added up since the last flush, of each sum

  // One unit ahead is loaded; and one turn more than there are units puts the last sums down. So
  // the code of both is there once: in two places it took the compiler half as long again.
#pragma unroll 1
  for (int number = -1;; ++number) {
    if (number >= 0) {
      wait_for_copies(0);
      __syncthreads();
    }
    load(number + 1);
    if (number < 0) continue;
    const bool ends = first_unit + number >= last_unit;
    products += g.unit_steps();
    if (products > kMostSteps || ends) {
      flush();
      products = g.unit_steps();
    }
    if (ends) break;
    if (source_pieces.in_words || result_pieces.in_words) place(number);
    const UnitRows r = rows_of(first_unit + number);
    // Of a step's first position: the row of the image, of those that are there, that the warp's
    // first row of the filter takes. And of the lane's position: rows of lanes that have no image
    // are beyond all that there are.
    const int lower_sources = warp_rows[1] > 0 ? r.sources : -(1 << 30);
    int first = r.result + tile_h + warp_row - g.h.pad - r.source + split * g.step_rows;
    int left = warp_rows[0] > 0 ? r.results - split * g.step_rows : 0;
    const int stage = (number & 1) * g.stage_bytes;
    int source_row = image_image < r.images ? first + image_row : -(1 << 30);
    std::uint32_t source = source_lane + stage + (first + image_row) * pitch;
    int gradient_left = gradient_image < r.images ? left - gradient_row : 0;
    std::uint32_t gradient =
        gradient_lane + stage + (split * g.step_rows + gradient_row) * g.result_pitch;
#pragma unroll 1
    while (left > 0) {
      // Whether any row of the step meets the image with any of the warp's in that half.
      const int second = first + g.half_tile;
      const bool met[2] = {first >= g.least_row && first < r.sources,
                           second >= g.least_row && second < lower_sources};
      if (met[0] || met[1]) {
        int offset = 0;
#pragma unroll 1
        do {
          GradientColumns<blocks> grad;
          grad.load(gradient_left > 0 ? gradient + offset : zeros);
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            if (!met[h]) continue;
            const int half_row = source_row + h * g.half_tile;
            const std::uint32_t half_source = source + h * g.half_bytes + offset;
#pragma unroll
            for (int u = 0; u < half; u += at_once) {
              // Not of each row: a branch waits for all products before it.
              if (spans == 1 && u > 0 && u >= warp_rows[h]) break;
              ImageColumns<shape.image_blocks()> image[at_once];
              std::uint32_t from[at_once];
#pragma unroll
              for (int k = 0; k < at_once; ++k) {
                const bool meets =
                    static_cast<unsigned>(half_row + u + k) < static_cast<unsigned>(r.sources);
                from[k] = meets ? half_source + (u + k) * pitch : zeros;
                image[k].load(0, from[k]);
              }
#pragma unroll
              for (int i = 0; i < shape.image_blocks() - 1; ++i) {
                if (i % 2 == 0 && i + 2 < shape.image_blocks()) {
#pragma unroll
                  for (int k = 0; k < at_once; ++k)
                    image[k].load(i / 2 + 1, from[k]);
                }
#pragma unroll
                for (int k = 0; k < at_once; ++k) {
                  std::uint32_t operand[4];
                  image[k].operand(operand, i, p.zero);
#pragma unroll
                  for (int m = 0; m < spans; ++m) {
                    const int b = i - 2 * m;
                    if (b >= 0 && b < blocks)
                      multiply_add<Type>(sums[h][u + k][m], operand, grad.blocks[b],
                                         sums[h][u + k][m]);
                  }
                }
              }
            }
          }
          offset += 16 * blocks;
        } while (offset < g.result_bytes);
      }
      first += g.turn_rows;
      left -= g.turn_rows;
      source_row += g.turn_rows;
      source += g.turn_source;
      gradient_left -= g.turn_rows;
      gradient += g.turn_result;
    }
    if (sums_bias) bias_sum += sum_of_rows(r);
  }

  const SliceSink<S> sink(p.partials, p.slices, slice, partial, result);
  // The sums of all warps, in their order.
  __syncthreads();
  float* const all = reinterpret_cast<float*>(shared + g.sums_at);
  for (int i = threadIdx.x; i < g.tile_h * g.tile_w; i += kThreads) {
    const int row = i / g.tile_w, column = i - row * g.tile_w;
    if (tile_h + row >= g.h.kernel || tile_w + column >= g.w.kernel) continue;
    const int h = row / g.half_tile, of_half = row - h * g.half_tile;
    const int row_group = of_half / g.half_rows;
    const int of_warp = h * g.half_rows + of_half - row_group * g.half_rows;
    const float* from = all + row_group * warp_taps + of_warp * g.tile_w + column;
    float sum = 0;
    for (int k = 0; k < g.splits; ++k)
      sum += from[k * g.row_groups * warp_taps];
    sink.put(channel, (g.first_tap_row + tile_h + row) * p.kernel_w + g.first_tap + tile_w + column,
             sum);
  }
  // Taps that meet no image.
  if (tile_w == 0 && tile_h == 0) {
    for (int i = threadIdx.x; i < p.partials.taps; i += kThreads) {
      const int row = i / p.kernel_w - g.first_tap_row, column = i % p.kernel_w - g.first_tap;
      const bool met = static_cast<unsigned>(row) < static_cast<unsigned>(g.h.kernel) &&
                       static_cast<unsigned>(column) < static_cast<unsigned>(g.w.kernel);
      if (!met) sink.put(channel, i, 0);
    }
  }
  if (sums_bias) sink.put_bias(channel, bias_sum, all);
#endif
}

template <typename S>
using Kernel = void (*)(WeightGradient, const typename S::Type*, const typename S::Type*, float*,
                        Gradients<S>);

template <typename S>
Kernel<S> choose_kernel(const Shape& shape) {
  Kernel<S> found = nullptr;
  const auto consider = [&]<int spans, int blocks>() {
    if constexpr (spans < kMostSpans || blocks < kMostBlocks) {
      if (shape.spans == spans && shape.blocks == blocks) found = sum_products<S, spans, blocks>;
    }
  };
  const auto consider_spans = [&]<int spans>() {
    consider.template operator()<spans, kBlocks[0]>();
    consider.template operator()<spans, kBlocks[1]>();
    consider.template operator()<spans, kBlocks[2]>();
  };
  consider_spans.template operator()<1>();
  consider_spans.template operator()<2>();
  consider_spans.template operator()<3>();
  consider_spans.template operator()<kMostSpans>();
  return found;
}

template <DType dtype>
void launch_sum_products(const Problem& problem, const Plan& plan, const Tensors& tensors,
                         cudaStream_t stream) {
  using S = Scalar<dtype>;
  const Geometry g = geometry(problem, plan.tiling);
  const WeightGradient p(g, problem, plan, piece_bytes(tensors.input, g.w.source),
                         piece_bytes(tensors.output, g.w.result));
  launch_slices<S>("lines sum_products", choose_kernel<S>(g.shape), p, plan, tensors, stream);
}

}  // namespace dwconv::lines
