// The tile family: input gradient with stride 2, by phases. Result 2 * q + phase - pad takes only
// the taps of its own phase, 2 * m + phase, from the output gradient at q - m: so the four results
// of a step along both axes share their reads, and no tap is tried in vain.
#pragma once

#include <utility>

#include "check.cuh"
#include "claim_counters.h"
#include "tile.cuh"
#include "tile.h"
#include "tile_unit.cuh"
#include "walk.cuh"

namespace dwconv::tile {

struct Phases {
  Grid grid;
  int kernel_h;
  int result_h, result_w;
  int pad_h, pad_w;
};

// With `kernel_h` 0 its height comes at run time, and a thread goes down its rows once for each
// pair of filter rows; otherwise once, for all of them.
template <typename S, int kernel_w, int kernel_h>
__global__ void __launch_bounds__(kMaxThreads, kStepBlocks)
    scatter(const __grid_constant__ Phases p, const typename S::Type* __restrict__ source,
            const typename S::Type* __restrict__ weight, typename S::Type* __restrict__ result,
            const __grid_constant__ Claims claims) {
  using Type = typename S::Type;
  constexpr int half_w = (kernel_w + 1) / 2;
  constexpr int pairs = kernel_h == 0 ? 1 : (kernel_h + 1) / 2;
  extern __shared__ __align__(16) char shared[];
  const Grid& grid = p.grid;
  const Geometry& g = grid.g;
  const int taps = p.kernel_h * kernel_w;

  // The result rows of a unit's band.
  const auto result_rows = [&](const Unit& unit) {
    const RowRange steps = grid.result_rows(unit);
    return RowRange{max(2 * steps.first - p.pad_h, 0), min(2 * steps.last - p.pad_h, p.result_h)};
  };
  const auto source_of = [&](const Unit& unit) {
    const RowRange rows = grid.source_rows(unit);
    return Run<const Type>{grid.source_run(source, unit, rows), nullptr,
                           grid.planes(unit) * rows.count() * g.w.source};
  };
  const auto result_of = [&](const Unit& unit) {
    const RowRange rows = result_rows(unit);
    return Run<Type>{result + (grid.first_plane(unit) * p.result_h + rows.first) * p.result_w,
                     nullptr, grid.planes(unit) * (rows.last - rows.first) * p.result_w};
  };
  const auto store_filters = [&](const Unit& unit, float* to, int thread, int threads) {
    const Type* from = weight + grid.first_channel(unit) * taps;
#pragma unroll 4
    for (int i = thread; i < grid.channels_of(unit) * taps; i += threads)
      to[i] = S::widen(from[i]);
  };
  auto walk =
      walk_over<kernel_h != 0>(grid, claims, Use::any, shared, source_of, result_of, store_filters);
  if (walk.serves()) return walk.serve();
  const int workers = walk.workers();
  const Item first_item = item_at(grid, threadIdx.x);
  while (walk.next()) {
    const Unit& unit = walk.unit();
    const int planes = grid.planes(unit);
    const auto* stage = reinterpret_cast<const Type*>(walk.stage());
    const float* filters = walk.filters();

    const RowRange rows = grid.source_rows(unit);
    const Type* run = stage + misalignment(grid.source_run(source, unit, rows));
    const int source_plane = rows.count() * g.w.source;
    const int first_step = unit.band * g.rows;
    const int valid_steps = grid.result_rows(unit).count();
    const auto [first_row, last_row] = result_rows(unit);
    const int result_plane = (last_row - first_row) * p.result_w;
    Type* staged_out =
        reinterpret_cast<Type*>(walk.result()) + misalignment(result_of(unit).global);

    for (int i = threadIdx.x; i < g.items; i += workers) {
      const Item item = i < workers ? first_item : item_at(grid, i);
      if (item.plane >= planes || item.row >= valid_steps) continue;
      const float* filter = filters + grid.channel(item.plane) * taps;
      const int step = first_step + item.row;
      const Type* at = run + item.plane * source_plane + (step - rows.first) * g.w.source;
      bool inside[half_w];
#pragma unroll
      for (int m = 0; m < half_w; ++m)
        inside[m] = static_cast<unsigned>(item.column - m) < static_cast<unsigned>(g.w.source);

      float sums[2 * kStepRows][2] = {};
#pragma unroll 1
      for (int first = 0; first < g.h.kernel; first += pairs) {
        float rows_of_filter[2 * pairs][kernel_w];
#pragma unroll
        for (int a = 0; a < 2 * pairs; ++a)
#pragma unroll
          for (int b = 0; b < kernel_w; ++b)
            rows_of_filter[a][b] =
                2 * first + a < p.kernel_h ? filter[(2 * first + a) * kernel_w + b] : 0.f;
        // Down the rows that meet these pairs. Without a branch, the next ones are on their way; of
        // a gradient of few rows most are outside, and skipped.
        const int top = step - first - (pairs - 1);
        const auto go_down = [&]<bool skip>() {
          const Type* from = at + (top - step) * g.w.source + item.column;
#pragma unroll
          for (int i = 0; i < kStepRows + pairs - 1; ++i, from += g.w.source) {
            const bool there = rows.holds(top + i);
            if (skip && !there) continue;
            float values[half_w];
#pragma unroll
            for (int n = 0; n < half_w; ++n)
              values[n] = there && inside[n] ? S::widen(from[-n]) : 0.f;
#pragma unroll
            for (int r = 0; r < kStepRows; ++r) {
              const int pair = r - i + pairs - 1;
              if (pair < 0 || pair >= pairs) continue;
#pragma unroll
              for (int phase = 0; phase < 2; ++phase) {
                const int a = 2 * pair + phase;
                if (kernel_h == 0 ? 2 * first + a >= p.kernel_h : a >= kernel_h) continue;
                float (&sum)[2] = sums[2 * r + phase];
#pragma unroll
                for (int b = 0; b < kernel_w; ++b)
                  sum[b % 2] = fmaf(values[b / 2], rows_of_filter[a][b], sum[b % 2]);
              }
            }
          }
        };
        if (kernel_h == 0 && rows.count() < kStepRows) {
          go_down.template operator()<true>();
        } else {
          go_down.template operator()<false>();
        }
      }

      const int row = 2 * step - p.pad_h;
      const int column = 2 * item.column - p.pad_w;
      Type* to = staged_out + item.plane * result_plane + (row - first_row) * p.result_w + column;
      const bool left = static_cast<unsigned>(column) < static_cast<unsigned>(p.result_w);
      const bool right = static_cast<unsigned>(column + 1) < static_cast<unsigned>(p.result_w);
#pragma unroll
      for (int r = 0; r < 2 * kStepRows; ++r) {
        if (row + r >= first_row && row + r < last_row) {
          if (left) to[0] = S::round(sums[r][0]);
          if (right) to[1] = S::round(sums[r][1]);
        }
        to += p.result_w;
      }
    }
    walk.leave();
  }
}

template <typename S>
using Scatter = void (*)(Phases, const typename S::Type*, const typename S::Type*,
                         typename S::Type*, Claims);

template <typename S, int... width>
Scatter<S> scatter_of(int kernel_w, int kernel_h, std::integer_sequence<int, width...>) {
  constexpr Scatter<S> square[] = {scatter<S, width + 1, (width < kMaxSquare ? width + 1 : 0)>...};
  constexpr Scatter<S> any[] = {scatter<S, width + 1, 0>...};
  return (kernel_w == kernel_h ? square : any)[kernel_w - 1];
}

template <DType dtype>
void launch_scatter(const Problem& problem, const Plan& plan, const Tensors& tensors,
                    cudaStream_t stream) {
  using S = Scalar<dtype>;
  using Type = typename S::Type;
  const Geometry g = geometry(problem, plan.tiling);
  const Phases p{.grid = Grid(g, problem, plan),
                 .kernel_h = static_cast<int>(problem.h.kernel),
                 .result_h = static_cast<int>(problem.h.input),
                 .result_w = static_cast<int>(problem.w.input),
                 .pad_h = static_cast<int>(problem.h.pad_before),
                 .pad_w = static_cast<int>(problem.w.pad_before)};
  const auto kernel = scatter_of<S>(static_cast<int>(problem.w.kernel), p.kernel_h,
                                    std::make_integer_sequence<int, kMaxKernel>{});
  allow_shared(kernel, g.shared_bytes);
  kernel<<<static_cast<unsigned>(plan.blocks), plan.threads, g.shared_bytes, stream>>>(
      p, static_cast<const Type*>(tensors.output), static_cast<const Type*>(tensors.weight),
      static_cast<Type*>(tensors.input), Claims(plan, g.units, claim_counters(plan, stream)));
  check_launch("tile scatter");
}

// An input gradient with stride 1 is a forward pass with the filters turned round.
template <DType dtype>
void launch_backward_input(const Problem& problem, const Plan& plan, const Tensors& tensors,
                           cudaStream_t stream) {
  if (by_phases(problem)) {
    launch_scatter<dtype>(problem, plan, tensors, stream);
  } else {
    launch_convolve<dtype>(problem, plan, tensors, stream);
  }
}

}  // namespace dwconv::tile
