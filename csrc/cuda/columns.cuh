// The columns family's kernels.
#pragma once

#include "columns_launch.cuh"
#include "columns_unit.cuh"
#include "launch_units.cuh"
#include "mma.cuh"
#include "uniform.cuh"

namespace dwconv::columns {

// A warp's results: rows of a tile by blocks of columns, of several images.
template <typename S, Shape shape>
struct Tile {
  using Type = typename S::Type;
  static constexpr int kSteps = shape.steps;
  static constexpr int kBlocks = shape.blocks();
  static constexpr int kColumn = shape.column_bytes();

  const Geometry& g;
  int channel, first_image, first_column, first_row;  // of the unit
  float sums[kSteps][kBlocks][4];

  __device__ Tile(const Grid& grid, int task) : g(grid.g) {
    int rest = task;
    first_row = grid.tiles.remainder(rest) * shape.rows();
    first_image = grid.image_groups.remainder(rest) << g.image_bits;
    first_column = grid.column_groups.remainder(rest) * g.blocks_across() * kBlock;
    channel = rest;
  }
  // Where a block is, whether it is there or not.
  __device__ int image(int block) const {
    return first_image + (block & ((1 << g.image_bits) - 1));
  }
  __device__ int column(int block) const { return first_column + (block >> g.image_bits) * kBlock; }

  // Of the image's columns, as many matrices as a product has of them; at[i] is the lane's row of
  // the first.
  template <int count>
  __device__ static void load(std::uint32_t (&words)[kBlocks][2 * kSteps],
                              const std::uint32_t (&at)[count], std::uint32_t offset) {
    constexpr int matrices = kBlocks * 2 * kSteps / count;  // by one address
#pragma unroll
    for (int i = 0; i < count; ++i) {
#pragma unroll
      for (int j = 0; j < matrices; j += 4) {
        std::uint32_t* to = &words[0][0] + i * matrices + j;
        const std::uint32_t from = at[i] + offset + 16 * j;
        if (matrices - j >= 4) {
          std::uint32_t four[4];
          load_matrices(four, from);
#pragma unroll
          for (int k = 0; k < 4; ++k)
            to[k] = four[k];
        } else {
          std::uint32_t two[2];
          load_matrices(two, from);
          to[0] = two[0];
          to[1] = two[1];
        }
      }
    }
  }

  // `taps` are the channel's; row r of results reads rows from r - pad on, of those that are there.
  __device__ void multiply(std::uint32_t turned, std::uint32_t taps, int pad, int rows,
                           float first_sum) {
    const unsigned lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < kSteps; ++m)
#pragma unroll
      for (int n = 0; n < kBlocks; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          sums[m][n][i] = first_sum;

    // The taps that meet an image at all.
    const int last_column = min(first_column + g.blocks_across() * kBlock, g.w.result) - 1;
    const int first_tap = max(0, g.w.pad - last_column);
    const int last_tap = min(g.w.kernel, g.w.source + g.w.pad - first_column);

    // Four matrices at a time: of one block, or of two where a column is no longer.
    constexpr int together = kSteps == 1 ? 2 : 1;
    std::uint32_t at[kBlocks / together];
    turned += channel * g.plane_bytes + (g.lead - g.w.pad + first_tap + lane % 8) * kColumn +
              (together == 2 ? lane / 8 % 2 : lane / 8) * 16;
#pragma unroll
    for (int i = 0; i < kBlocks / together; ++i) {
      const int block = together * i + (together == 2 ? lane / 16 : 0);
      at[i] = turned + image(block) * g.image_bytes + column(block) * kColumn;
    }
    // From a row of results to one of the image, and the next: the lane's pairs of taps.
    const int pair = kTapMargin + pad + static_cast<int>(lane % 4 * 2) - static_cast<int>(lane / 4);
    taps += (pair & 1) * g.copy_bytes + (pair >> 1) * 4 + first_tap * g.filter_column;

    int first = 0;
    do {
      // Products whose rows are so far apart meet the filter.
      const int apart = (first - first_row) / kStep + 1 - kSteps;
      const int first_met = -((kStep - 1 + pad) >> 4) - apart;
      const int last_met = ((g.h.kernel - 1 + kStep - 1 - pad) >> 4) - apart;
      bool met[2 * kSteps - 1];
#pragma unroll
      for (int d = 0; d < 2 * kSteps - 1; ++d)
        met[d] = d >= first_met && d <= last_met;
      if (kSteps <= 2 || (last_met >= 0 && first_met < 2 * kSteps - 1)) {
        std::uint32_t filter = taps + apart * (2 * kStep);
#pragma unroll kSteps == 1 ? 2 : 1
        for (int tap = 0; tap < last_tap - first_tap; ++tap) {
          std::uint32_t words[kBlocks][2 * kSteps];
          load(words, at, tap * kColumn);
#pragma unroll
          for (int d = 0; d < 2 * kSteps - 1; ++d) {
            if (kSteps > 2 && !met[d]) continue;
            multiply(words, d, filter + d * (2 * kStep));
          }
          filter += g.filter_column;
        }
      }
#pragma unroll
      for (int i = 0; i < kBlocks / together; ++i)
        at[i] += g.sheet_bytes;
      first += shape.rows();
    } while (first < rows);
  }

  // All products whose rows are so far apart: `d` steps from the furthest, with taps from there on.
  __device__ void multiply(const std::uint32_t (&words)[kBlocks][2 * kSteps], int d,
                           std::uint32_t from) {
    const std::uint32_t matrix[4] = {load_again(from), load_again(from - 2 * kBlock),
                                     load_again(from + 2 * kBlock), load_again(from)};
#pragma unroll
    for (int m = 0; m < kSteps; ++m) {
      const int k = m + d - (kSteps - 1);
      if (k < 0 || k >= kSteps) continue;
#pragma unroll
      for (int n = 0; n < kBlocks; ++n) {
        const std::uint32_t image_words[2] = {words[n][2 * k], words[n][2 * k + 1]};
        multiply_add<Type>(sums[m][n], matrix, image_words, sums[m][n]);
      }
    }
  }

  // To where the unit's results leave from, of which there are so many rows.
  template <bool even>
  __device__ void store(const Places& places, int images, int rows) const {
    const int lane = threadIdx.x % 32;
    const int row_bytes = 2 * g.w.result;
    const int left = rows - first_row - lane / 4;
    const std::uint32_t in_plane = (first_row + lane / 4) * row_bytes + (lane & 3) * 4;
#pragma unroll
    for (int n = 0; n < kBlocks; ++n) {
      const int columns = g.w.result - column(n) - (lane & 3) * 2;
      const int there = image(n) < images && columns > 0 ? left : 0;
      const int second = columns > 1 ? there : 0;
      std::uint32_t to = places.at(image(n), channel) + in_plane + 2 * column(n);
#pragma unroll
      for (int m = 0; m < 2 * kSteps; ++m, to += kBlock * row_bytes) {
        const std::uint32_t words =
            round_pair<Type>(sums[m / 2][n][m % 2 * 2], sums[m / 2][n][m % 2 * 2 + 1]);
        if (even) {
          store_word_below(to, words, m * kBlock, there);
        } else {
          store_element_below(to, words, m * kBlock, there);
          store_element_below(to + 2, words >> 16, m * kBlock, second);
        }
      }
    }
  }
};

struct Convolution {
  Grid grid;
};

template <typename S, int steps>
__global__ void __launch_bounds__(kMostThreads, 2)
    convolve(const __grid_constant__ Convolution p, const typename S::Type* __restrict__ source,
             const typename S::Type* __restrict__ weight, const typename S::Type* __restrict__ bias,
             typename S::Type* __restrict__ result) {
#if __CUDA_ARCH__ >= 800
  extern __shared__ __align__(16) char shared[];
  constexpr Shape shape{steps};
  const Grid& grid = p.grid;
  const Geometry& g = grid.g;
  const int warp = uniform(static_cast<int>(threadIdx.x) / 32);
  const int warps = static_cast<int>(blockDim.x) / 32;
  const std::uint32_t turned = shared_address(shared + g.turned_at);
  zero_shared(shared + g.turned_at, g.turned_bytes);

  const auto load = [&](RunLoader& loader, int slot, char* stage, const Unit& unit) {
    loader.load(slot, grid.use, [&](int i) {
      return i < g.images ? grid.source_run(source, unit, i, stage)
                          : grid.filters(weight, unit, stage + g.filters_at);
    });
  };
  int group = -1;
  Pipeline pipeline(grid, shared, g.images + 1, load);
  for (; pipeline.more(); pipeline.advance()) {
    const Unit unit = pipeline.unit();
    pipeline.wait_for_place();
    char* stage = const_cast<char*>(pipeline.wait());  // where results wait to leave, after it
    if (unit.group != group) {
      group = unit.group;
      spread_taps(reinterpret_cast<std::uint32_t*>(shared + g.taps_at),
                  reinterpret_cast<const std::uint16_t*>(stage + g.filters_at) +
                      misalignment(grid.filters(weight, unit, nullptr).global),
                  grid);
    }
    const Places to(grid.result_run(result, unit, 0, stage), g.image_step, grid.channels,
                    g.h.result * g.w.result);
    turn_planes<shape>(turned,
                       Places(grid.source_run(source, unit, 0, stage), g.image_step, grid.channels,
                              g.h.source * g.w.source),
                       grid, unit, warp, warps);
    __syncthreads();
    const RowRange source_rows = grid.source_rows(unit), rows = grid.result_rows(unit);
    const int images = grid.images_of(unit);
#pragma unroll 1
    for (int task = warp; task < g.tasks; task += warps) {
      Tile<S, shape> tile(grid, task);
      if (tile.channel >= grid.channels_of(unit) || tile.first_image >= images ||
          tile.first_row >= rows.count())
        continue;
      const float first_sum =
          bias == nullptr ? 0 : S::widen(bias[grid.first_channel(unit) + tile.channel]);
      tile.multiply(
          turned, shared_address(shared + g.taps_at) + tile.channel * g.w.kernel * g.filter_column,
          g.h.pad + source_rows.first - rows.first, source_rows.count(), first_sum);
      if (grid.even_result) {
        tile.template store<true>(to, images, rows.count());
      } else {
        tile.template store<false>(to, images, rows.count());
      }
    }
    publish();
    __syncthreads();
    send_runs<typename S::Type>(g.images,
                                [&](int i) { return grid.result_run(result, unit, i, stage); });
  }
  wait_until_sent<0>();
#endif
}

template <DType dtype>
void launch_convolve(const Problem& problem, const Plan& plan, const Tensors& tensors,
                     cudaStream_t stream) {
  using S = Scalar<dtype>;
  const Geometry g = geometry(problem, plan.tiling);
  decltype(&convolve<S, 1>) kernels[] = {convolve<S, 1>, convolve<S, 2>, convolve<S, 3>,
                                         convolve<S, 4>};
  launch_convolution<S>("columns convolve", kernels[g.shape.steps - 1],
                        Convolution{Grid(g, problem, plan, tensors)}, problem, plan, tensors,
                        stream);
}

}  // namespace dwconv::columns
