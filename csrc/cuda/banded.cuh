// The banded family: forward pass, and input gradient, which is one with the filter turned round.
//
// A step is a row of the image, which meets as many rows of results as a warp has, each with
// another row of the filter. Matrices of filter rows stay in registers from one row of results to
// the next. Warps take their tasks one by one, whichever unit they are of, and the warp that ends a
// unit's last task brings the next unit into its stage.
#pragma once

#include <iterator>

#include "../families/row_pieces.h"
#include "banded.h"
#include "banded_unit.cuh"
#include "barriers.cuh"
#include "batches.cuh"
#include "launch_units.cuh"
#include "mma.cuh"

namespace dwconv::banded {

struct Convolution {
  Grid grid;
  bool mirrored;  // turn the filters round
  int copy_bytes;
  bool store_pairs;  // of results
  SmallDivisor tasks, row_groups, taps, stages;

  Convolution(const Geometry& g, const Problem& problem, const Plan& plan, int copy_bytes,
              bool store_pairs)
      : grid(g, problem, plan),
        mirrored(problem.pass == Pass::backward_input),
        copy_bytes(copy_bytes),
        store_pairs(store_pairs),
        tasks(g.tasks()),
        row_groups(g.row_groups),
        taps(g.taps),
        stages(grid.stages) {}
};

// A filter row's matrices. Those of two neighbouring blocks stand in two registers that follow each
// other, as products take them, so that most are there twice.
template <int reach>
struct Band {
  static constexpr int kPairs = reach == 0 ? 1 : 2 * reach;
  std::uint32_t pairs[kPairs][2];

  // `at` is where the lane's two elements of the first matrix are.
  __device__ void load(const char* at) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i)
#pragma unroll
      for (int k = 0; k < (reach == 0 ? 1 : 2); ++k)
        // Each for itself: left to it, the compiler copies registers instead.
        asm volatile("ld.volatile.shared.b32 %0, [%1];"
                     : "=r"(pairs[i][k])
                     : "r"(shared_address(at) + 16 * (i + k)));
  }
  // Of a block that is so many further than its results.
  __device__ std::uint32_t one(int distance) const {
    return distance < reach || reach == 0 ? pairs[distance + reach][0]
                                          : pairs[distance + reach - 1][1];
  }
};

// Adds the products of one row of the image and of a filter.
template <typename Type, int blocks, int reach>
__device__ inline void multiply_pair(float (&sums)[blocks][4], const std::uint32_t (&image)[4],
                                     int pair, const Band<reach>& band) {
#pragma unroll
  for (int result = 0; result < blocks; ++result) {
    const int first = 2 * pair - result;
    const bool meets_first = first >= -reach && first <= reach;
    const bool meets_second = first + 1 >= -reach && first + 1 <= reach && 2 * pair + 1 < blocks;
    float (&sum)[4] = sums[result];
    if (meets_first && meets_second) {
      multiply_add<Type>(sum, image, band.pairs[first + reach], sum);
    } else if (meets_first) {
      const std::uint32_t half[2] = {image[0], image[1]};
      multiply_add<Type>(sum, half, band.one(first), sum);
    } else if (meets_second) {
      const std::uint32_t half[2] = {image[2], image[3]};
      multiply_add<Type>(sum, half, band.one(first + 1), sum);
    }
  }
}

// A warp writes a channel's filter: each row twice, the second time one element further on. Zeros
// around it have been there before.
template <typename Type, int reach>
__device__ inline void store_filter(const Convolution& p, char* filters,
                                    const Type* __restrict__ channel) {
  constexpr int pitch = Shape{0, reach}.filter_row();
  const Geometry& g = p.grid.g;
  const auto* bits = reinterpret_cast<const std::uint16_t*>(channel);
  auto* const to = reinterpret_cast<std::uint16_t*>(filters);
  const int last = g.h.kernel * g.w.kernel - 1;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto load = [&](int index) {
    const int column = g.first_tap + p.taps.remainder(index);
    const int tap = (g.first_tap_row + index) * g.w.kernel + column;
    return bits[p.mirrored ? last - tap : tap];
  };
  in_batches<8>(lane, 32, g.tap_rows * g.taps, load, [&](int index, std::uint16_t value) {
    const int tap = p.taps.remainder(index);
    const int at = index * 2 * pitch + g.first_tap + tap - g.pad + kColumns * (reach + 1);
    to[at] = value;
    to[at + pitch - 1] = value;
  });
}

template <typename S, int blocks, int reach>
__global__ void __launch_bounds__(kThreads, 1)
    convolve(const __grid_constant__ Convolution p, const typename S::Type* __restrict__ source,
             const typename S::Type* __restrict__ weight, const typename S::Type* __restrict__ bias,
             typename S::Type* __restrict__ result) {
#if __CUDA_ARCH__ >= 800
  using Type = typename S::Type;
  constexpr Shape shape{blocks, reach};
  constexpr int rows = shape.rows();
  constexpr int pairs = ceil_div(blocks, 2);
  extern __shared__ __align__(16) char shared[];
  const Grid& grid = p.grid;
  const Geometry& g = grid.g;
  const int lane = threadIdx.x % 32, warp = static_cast<int>(threadIdx.x) / 32;
  char* const stages = shared + shape.zero_bytes();
  const std::uint32_t barriers = shared_address(shared + g.barriers_at);
  int* const done = reinterpret_cast<int*>(shared + g.barriers_at + 8 * grid.stages);
  int* const drawn = done + grid.stages;
  volatile int* const next_unit = drawn + 1;  // of each warp
  const int units = grid.unit_count();

  const auto tasks_done = [&](int slot) { return *static_cast<volatile int*>(done + slot); };
  const auto fill = [&](int number) {
    int turn = number;
    const int slot = p.stages.remainder(turn);
    char* stage = stages + slot * g.stage_bytes;
    const Unit unit = grid.unit_of_block(number);
    copy_planes<blocks>(grid, p.copy_bytes, unit, stage,
                        reinterpret_cast<const std::uint16_t*>(source));
    store_filter<Type, reach>(
        p, stage + g.filters_at,
        weight + static_cast<std::int64_t>(unit.channel) * g.h.kernel * g.w.kernel);
    __syncwarp();
    arrive_with_copies(barriers + 8 * slot);
    if (lane == 0) arrive_at(barriers + 8 * slot);
  };

  // Zeros: the row of them, around filters, and where no image is.
  zero_shared(shared, g.barriers_at);
  if (threadIdx.x == 0) {
    for (int i = 0; i < grid.stages; ++i) {
      init_barrier(barriers + 8 * i, 32 + 1);
      done[i] = 0;
    }
    *drawn = 0;
  }
  __syncthreads();
  if (warp < min(grid.stages, units)) {
    if (warp > 0 && come_one_by_one(g.stage_bytes, p.copy_bytes)) {
      while (!test_barrier(barriers + 8 * (warp - 1), 0) && tasks_done(warp - 1) == 0) {
      }
    }
    fill(warp);
  }

  // Where a lane reads: of a plane, and of a filter row.
  const int position = lane % 16;
  const int column_bytes = lane / 16 * 16;
  const int element = lane % 4 * 2 - lane / 4 + kColumns;
  const int filter_lane = lane / 4 % 2 == 0 ? 2 * element : 2 * (shape.filter_row() + element - 1);

#pragma unroll 1
  for (;;) {
    int task = 0;
    if (lane == 0) task = atomicAdd(drawn, 1);
    // Not a shuffle: the compiler knows that a reduction is the same for all lanes, and need not
    // bring them together before each product (two steps are 132 instructions, and were 159).
    task = __reduce_max_sync(0xffffffffu, task);
    const int number = p.tasks.quotient(task);
    if (number >= units) break;
    task -= number * p.tasks.value();
    int turn = number;
    const int slot = p.stages.remainder(turn);
    const Unit unit = grid.unit_of_block(number);
    // Long tasks first, those in the middle.
    const int group_index = p.row_groups.remainder(task);
    const int middle = g.row_groups / 2;
    const int group =
        group_index % 2 != 0 ? middle - (group_index + 1) / 2 : middle + group_index / 2;
    const int first_position = task * kPositions;
    char* const stage = stages + slot * g.stage_bytes;
    // First for the tasks before: the barrier only tells of the unit that is on its way by now.
    while (tasks_done(slot) < turn * g.tasks()) {
    }
    wait_barrier(barriers + 8 * slot, turn % 2);

    // Step t is the row of the image that filter row t of the first result meets.
    const int top = grid.first_row(unit);
    const int source_rows = grid.last_row(unit) - top;
    const int row = unit.row + group * rows - g.h.pad - top;  // of step 0, of the first band
    const int last_band = row + (g.bands - 1) * g.band_rows;
    const int first = max(0, -last_band) / rows * rows;
    const int last = min(g.h.kernel + rows - 1, source_rows - row);
    const int of_unit = first_position + position;
    const int image = of_unit >> g.band_bits;
    const int band = of_unit & (g.bands - 1);
    int at_row = row + band * g.band_rows + first;
    // Bands before that row of the first of them, some perhaps above the image.
    int bands_before = row + first + grid.rows_before(unit, rows) + g.bands_above * g.band_rows;
    int rows_left = g.band_rows - grid.band_rows.remainder(bands_before);
    const char* at = stage + image * g.plane_bytes + at_row * shape.row_bytes() +
                     (bands_before - g.bands_above + band) * g.skew_bytes + column_bytes;
    const char* const zeros = shared + column_bytes;

    const float start = bias == nullptr ? 0.f : S::widen(bias[unit.channel]);
    float sums[rows][blocks][4] = {};

    Band<reach> bands[rows];
    const char* filters = stage + g.filters_at + filter_lane;
    const auto load_filter = [&](Band<reach>& band, int filter_row) {
      // Of rows that there are not, some other: no result is given it.
      const int there = min(max(filter_row - g.first_tap_row, 0), g.tap_rows - 1);
      band.load(filters + there * shape.filter_bytes());
    };
#pragma unroll
    for (int i = 1; i < rows; ++i)
      load_filter(bands[rows - i], first - i);

    for (int t = first; t < last;) {
      const int end = min(t + rows_left, last);
#pragma unroll 1
      while (t < end) {
#pragma unroll
        for (int u = 0; u < rows; ++u) {
          if (t >= end) break;
          load_filter(bands[u], t);
          const bool there = static_cast<unsigned>(at_row) < static_cast<unsigned>(source_rows);
          const std::uint32_t from = shared_address(there ? at : zeros);
#pragma unroll
          for (int pair = 0; pair < pairs; ++pair) {
            std::uint32_t words[4];
            load_matrices(words, from + 32 * pair);
#pragma unroll
            for (int i = 0; i < rows; ++i) {
              if (rows > 1 && static_cast<unsigned>(t - i) >= static_cast<unsigned>(g.h.kernel))
                continue;
              multiply_pair<Type, blocks, reach>(sums[i], words, pair,
                                                 bands[(u - i + rows) % rows]);
            }
          }
          ++t;
          ++at_row;
          at += shape.row_bytes();
        }
      }
      at += g.skew_bytes;  // into the next band
      rows_left = g.band_rows;
    }

    // The stage is free when all tasks of its unit are done: then who was last brings the next.
    __syncwarp();
    if (lane == 0) {
      __threadfence_block();
      const bool last_of_unit = atomicAdd(done + slot, 1) == (turn + 1) * g.tasks() - 1;
      __threadfence_block();
      next_unit[warp] = last_of_unit ? number + grid.stages : units;
    }
    __syncwarp();
    // By way of memory, not a shuffle: of a number that is known to be the same for all lanes ptxas
    // (13.0) works out an address once for each part of a warp that is divided, and so it did with
    // the copies of rows of 39 elements: the second part's address came of the first's.
    const int next = next_unit[warp];

    // Columns of results that the tile has, counted from its first block; and the lane's first.
    const int tile_column = (g.first_block(unit.tile) - g.result_block) * kColumns;
    const int first_column = max(unit.tile == 0 ? 0 : reach * kColumns, -tile_column);
    const int last_column = min((unit.tile == g.tiles - 1 ? blocks : blocks - reach) * kColumns,
                                g.w.result - tile_column);
    const int column = lane % 4 * 2;
    const auto is_there = [&](int at) {
      return static_cast<unsigned>(at - first_column) <
             static_cast<unsigned>(last_column - first_column);
    };
    const int rows_end = min(unit.row + g.rows, g.h.result);
    const int images = grid.images_of(unit);
    const auto store_results = [&]<bool pairs>() {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int index = first_position + lane / 4 + 8 * half;
        const int of_image = index >> g.band_bits;
        const int result_row = unit.row + (index & (g.bands - 1)) * g.band_rows + group * rows;
        const std::int64_t plane =
            static_cast<std::int64_t>(unit.image + of_image) * grid.channels + unit.channel;
        Type* to = result + (plane * g.h.result + result_row) * g.w.result + tile_column + column;
#pragma unroll
        for (int i = 0; i < rows; ++i) {
          if (of_image < images && result_row + i < rows_end) {
#pragma unroll
            for (int b = 0; b < blocks; ++b) {
              const int at = b * kColumns;
              const float one = sums[i][b][2 * half] + start;
              const float other = sums[i][b][2 * half + 1] + start;
              if constexpr (pairs) {
                if (is_there(column + at)) store_pair(to + at, one, other);
              } else {
                if (is_there(column + at)) to[at] = S::round(one);
                if (is_there(column + at + 1)) to[at + 1] = S::round(other);
              }
            }
          }
          to += g.w.result;
        }
      }
    };
    if (p.store_pairs) {
      store_results.template operator()<true>();
    } else {
      store_results.template operator()<false>();
    }
    if (next < units) fill(next);
  }
  wait_for_copies(0);
#endif
}

template <typename S>
using Kernel = void (*)(Convolution, const typename S::Type*, const typename S::Type*,
                        const typename S::Type*, typename S::Type*);

template <typename S, int blocks, int reach = most_reach(blocks)>
Kernel<S> choose_reach(int wanted) {
  if constexpr (reach > std::min(1, blocks - 1)) {
    if (wanted < reach) return choose_reach<S, blocks, reach - 1>(wanted);
  }
  return convolve<S, blocks, reach>;
}

template <typename S, int index = 0>
Kernel<S> choose_kernel(const Shape& shape) {
  if constexpr (index + 1 < static_cast<int>(std::size(kBlocks))) {
    if (shape.blocks != kBlocks[index]) return choose_kernel<S, index + 1>(shape);
  }
  return choose_reach<S, kBlocks[index]>(shape.reach);
}

template <DType dtype>
void launch_convolve(const Problem& problem, const Plan& plan, const Tensors& tensors,
                     cudaStream_t stream) {
  if (plan.blocks == 0) return;
  using S = Scalar<dtype>;
  using Type = typename S::Type;
  const Geometry g = geometry(problem, plan.tiling);
  const bool backward = problem.pass == Pass::backward_input;
  const auto* source = static_cast<const Type*>(backward ? tensors.output : tensors.input);
  const void* result = backward ? tensors.input : tensors.output;
  const Convolution p(g, problem, plan, piece_bytes(source, g.w.source),
                      piece_bytes(result, g.w.result) >= 4);
  launch_convolution<S>("banded convolve", choose_kernel<S>(g.shape), p, problem, plan, tensors,
                        stream);
}

}  // namespace dwconv::banded
