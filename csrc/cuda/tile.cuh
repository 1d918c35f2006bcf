// The tile family: forward with stride 1 and 2, input gradient with stride 1. A block walks over
// units of work, whole planes or bands of rows: each is one contiguous run, loaded while the unit
// before it is computed, and so are its results.
#pragma once

#include "claim_counters.h"
#include "launch_units.cuh"
#include "tile.h"
#include "tile_choice.cuh"
#include "tile_unit.cuh"
#include "walk.cuh"

namespace dwconv::tile {

struct Convolution {
  Grid grid;
  bool mirrored;  // turn the filters round
  Use use;        // of the source
};

// Adds `filter_rows` rows of the filter to a tile. `row` is the image row of the first one, `at`
// its column 0. Rows past the last one loaded belong to results that do not exist.
template <typename S, int kernel_w, int tile_rows, typename A, int filter_rows>
__device__ inline void add_taps(float (&sums)[tile_rows][A::columns],
                                TileRow<S, kernel_w, A>& elements, const typename S::Type* at,
                                int row, RowRange rows, const float* weight, const Geometry& g,
                                const typename S::Type* zeros) {
  float taps[filter_rows][kernel_w];
#pragma unroll
  for (int i = 0; i < filter_rows; ++i)
#pragma unroll
    for (int j = 0; j < kernel_w; ++j)
      taps[i][j] = weight[i * kernel_w + j];
  walk_rows<(tile_rows - 1) * A::stride + filter_rows>(
      elements, at, row, rows, g.h, g.w.source, zeros, [&](int r) {
#pragma unroll
        for (int i = 0; i < filter_rows; ++i) {
          if (r < i || (r - i) % A::stride != 0 || (r - i) / A::stride >= tile_rows) continue;
#pragma unroll
          for (int j = 0; j < kernel_w; ++j)
#pragma unroll
            for (int c = 0; c < A::columns; ++c) {
              float& sum = sums[(r - i) / A::stride][c];
              sum = fmaf(elements(r, c, j), taps[i][j], sum);
            }
        }
      });
}

template <typename S, int kernel_w, int tile_rows, typename A>
__global__ void __launch_bounds__(kMaxThreads,
                                  resident_blocks(A::value, tile_rows,
                                                  filter_rows_of(A::value, kernel_w), kernel_w))
    convolve(const __grid_constant__ Convolution p, const typename S::Type* __restrict__ source,
             const typename S::Type* __restrict__ weight, const typename S::Type* __restrict__ bias,
             typename S::Type* __restrict__ result, const __grid_constant__ Claims claims) {
  using Type = typename S::Type;
  extern __shared__ __align__(16) char shared[];
  const Grid& grid = p.grid;
  const Geometry& g = grid.g;
  const int taps = g.h.kernel * kernel_w;

  const auto source_of = [&](const Unit& unit) {
    const RowRange rows = grid.source_rows(unit);
    return Run<const Type>{grid.source_run(source, unit, rows), nullptr,
                           grid.planes(unit) * rows.count() * g.w.source};
  };
  const auto result_of = [&](const Unit& unit) {
    return Run<Type>{grid.result_run(result, unit), nullptr,
                     grid.planes(unit) * grid.result_rows(unit).count() * g.w.result};
  };
  // Filters, and then the biases of their channels.
  const auto store_filters = [&](const Unit& unit, float* to, int thread, int threads) {
    const std::int64_t channel = grid.first_channel(unit);
    const int channels = grid.channels_of(unit);
#pragma unroll 4
    for (int i = thread; i < channels * taps; i += threads) {
      const int at = p.mirrored ? (2 * (i / taps) + 1) * taps - 1 - i : i;
      to[at] = S::widen(weight[channel * taps + i]);
    }
#pragma unroll 1
    for (int i = thread; i < channels; i += threads)
      to[g.channels * taps + i] = bias == nullptr ? 0.f : S::widen(bias[channel + i]);
  };
  const auto* zeros = reinterpret_cast<const Type*>(shared + g.zeros_at);
  zero_shared(shared + g.zeros_at, kZeroBytes);
  auto walk = walk_over<may_be_served(A::value, kernel_w, S::dtype)>(
      grid, claims, p.use, shared, source_of, result_of, store_filters);
  if (walk.serves()) return walk.serve();
  const int workers = walk.workers();
  // 7x7 in units of 4 never does; with the choice float32 28x28 took 75 us, and 72 without. 3x3,
  // which does not either, is 1 % faster with it.
  constexpr bool may_go_by_level = A::unit == 1 || kernel_w < 7;
  const Item first_item = item_at<may_go_by_level>(grid, threadIdx.x);
  while (walk.next()) {
    const Unit& unit = walk.unit();
    const int planes = grid.planes(unit);
    const auto* stage = reinterpret_cast<const Type*>(walk.stage());
    const float* filters = walk.filters();
    const float* biases = filters + g.channels * taps;

    const RowRange rows = grid.source_rows(unit);
    const Type* run = stage + misalignment(grid.source_run(source, unit, rows));
    const int source_plane = rows.count() * g.w.source;
    const int valid_rows = grid.result_rows(unit).count();
    const int result_plane = valid_rows * g.w.result;
    Type* staged_out =
        reinterpret_cast<Type*>(walk.result()) + misalignment(grid.result_run(result, unit));

    for (int i = threadIdx.x; i < g.items; i += workers) {
      const Item item = i < workers ? first_item : item_at<may_go_by_level>(grid, i);
      if (item.plane >= planes || item.row >= valid_rows || item.column >= g.w.result) continue;
      const int row = (unit.band * g.rows + item.row) * g.h.stride - g.h.pad;
      const Type* at = run + item.plane * source_plane + (row - rows.first) * g.w.source;
      const int channel = grid.channel(item.plane);
      const float* filter = filters + channel * taps;
      TileRow<S, kernel_w, A> elements(item.column, g.w, grid.zero);
      constexpr int columns = A::columns;
      float sums[tile_rows][columns];
#pragma unroll
      for (int r = 0; r < tile_rows; ++r)
#pragma unroll
        for (int c = 0; c < columns; ++c)
          sums[r][c] = biases[channel];
      constexpr int filter_rows = filter_rows_of(A::value, kernel_w);
      const auto add = [&]<int count>(int a) {
        add_taps<S, kernel_w, tile_rows, A, count>(
            sums, elements, at + a * g.h.dilation * g.w.source, row + a * g.h.dilation, rows,
            filter + a * kernel_w, g, zeros);
      };
      int a = 0;
#pragma unroll 1
      for (; a + filter_rows <= g.h.kernel; a += filter_rows)
        add.template operator()<filter_rows>(a);
      // What is left of a square filter goes at once.
      constexpr int rest = kernel_w % filter_rows;
      if constexpr (A::unit == 1 && A::columns > 1 && rest > 1) {
        if (g.h.kernel - a == rest) {
          add.template operator()<rest>(a);
          a += rest;
        }
      }
#pragma unroll 1
      for (; a < g.h.kernel; ++a)
        add.template operator()<1>(a);

      Type* to = staged_out + item.plane * result_plane + item.row * g.w.result + item.column;
#pragma unroll
      for (int r = 0; r < tile_rows; ++r) {
        if (item.row + r * g.h.dilation < valid_rows) {
          if constexpr (A::unit == 1) {
#pragma unroll
            for (int c = 0; c < columns; ++c) {
              const int step = c * g.column_classes;
              if (c == 0 || item.column + step < g.w.result) to[step] = S::round(sums[r][c]);
            }
          } else if constexpr (A::unit == 4 && 2 * A::pad == kernel_w - 1) {
            store_unit<S, 4>(to, sums[r]);  // as wide as the source
          } else {
            store_unit<S, 2>(to, sums[r]);
            if (item.column + 2 < g.w.result) store_unit<S, 2>(to + 2, sums[r] + 2);
          }
        }
        to += g.h.dilation * g.w.result;
      }
    }
    walk.leave();
  }
}

template <typename S>
using Convolve = void (*)(Convolution, const typename S::Type*, const typename S::Type*,
                          const typename S::Type*, typename S::Type*, Claims);

template <typename S>
struct Convolutions {
  template <int kernel_w, typename A>
  static Convolve<S> of(const Geometry& g) {
    if constexpr (A::columns > 1) {
      return convolve<S, kernel_w, rows_of(A::value, 0), A>;
    } else {
      if constexpr (has_tall_tiles(A::mode, kernel_w)) {
        if (g.tile_rows == kTallRows) return convolve<S, kernel_w, kTallRows, A>;
      }
      return convolve<S, kernel_w, kTileRows, A>;
    }
  }
};

template <DType dtype>
void launch_convolve(const Problem& problem, const Plan& plan, const Tensors& tensors,
                     cudaStream_t stream) {
  using S = Scalar<dtype>;
  const bool mirrored = problem.pass == Pass::backward_input;
  const Geometry g = geometry(problem, plan.tiling);
  const Convolution p{Grid(g, problem, plan), mirrored, use_of(plan)};
  const auto kernel = choose<Convolutions<S>, dtype>(g);
  launch_convolution<S>("tile convolve", kernel, p, problem, plan, tensors, stream,
                        Claims(plan, g.units, claim_counters(plan, stream)));
}

}  // namespace dwconv::tile
