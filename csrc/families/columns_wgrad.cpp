#include "columns_wgrad.h"

#include <cmath>

#include "image_blocks.h"

namespace dwconv::columns {

namespace {

// With more columns of a filter than the warps of a block have in one turn, images would be turned
// round again.
SumShape shape_of(const Window& h, const Window& w) {
  const int steps = std::min(ceil_div(std::max(h.source, h.result), kStep), kMostSumSteps);
  const int above = (h.pad + kStep - 1) / kStep, below = (h.kernel - h.pad + kStep - 2) / kStep;
  const int reach = std::clamp(std::max(above, below), 1, steps - 1 > 0 ? steps - 1 : 1);
  SumShape best;
  for (const SumShape& shape : kSumShapes) {
    const bool fits = shape.steps == steps && (steps == 1 || shape.reach >= reach);
    if (!fits || (best.steps == steps && best.reach < shape.reach)) continue;
    if (best.steps == steps && w.kernel <= kSumWarps * best.taps) continue;
    best = shape;
  }
  return best;
}

// Lanes of a product read columns of 8 planes, or fewer planes' neighbouring columns: in banks of
// their own.
int plane_bytes(int columns, int column_bytes, int images) {
  const int apart = std::max(8 / images, 1);
  int bytes = columns * column_bytes;
  while (images > 1 && bytes / 16 % (2 * apart) != apart)
    bytes += 16;
  return bytes;
}

}  // namespace

SumGeometry sum_geometry(const Problem& problem, const Tiling& tiling) {
  SumGeometry g;
  g.h = met_taps(forward_window(problem.h), g.first_tap_row);
  g.w = met_taps(forward_window(problem.w), g.first_tap);
  g.shape = shape_of(g.h, g.w);
  const int most_taps = kSumWarps * g.shape.taps;
  g.tap_tiles = ceil_div(g.w.kernel, most_taps);
  g.tile_taps = ceil_div(g.w.kernel, g.tap_tiles);
  g.tap_groups = ceil_div(g.tile_taps, g.shape.taps);
  g.splits = kSumWarps / g.tap_groups;
  g.images = tiling.images;
  g.step_columns = std::max(kStep / g.images, 1);
  g.rows = tiling.rows;
  g.bands = ceil_div(g.h.result, g.rows);
  g.parts = std::max(g.warps() / (2 * g.images), 1);

  // Columns of a product that a plane does not have are zeros, of the output gradient, and of the
  // image lest an Inf is among them.
  const int beyond = g.w.result - 1 - g.w.pad + g.w.kernel - g.w.source;
  const int column = Shape{g.shape.steps}.column_bytes();
  g.lead = std::max(g.w.pad, 0);
  g.source_plane =
      plane_bytes(g.w.source + std::max(g.lead, beyond) + g.step_columns - 1, column, g.images);
  g.result_plane = plane_bytes(round_up(g.w.result, g.step_columns), column, g.images);

  g.source_step = odd_run_bytes(std::int64_t{g.h.source} * g.w.source);
  g.result_step = odd_run_bytes(std::int64_t{g.h.result} * g.w.result);
  g.grad_at = g.images * g.source_step;
  g.source_at = g.grad_at + g.images * g.result_step;
  g.result_at = g.source_at + g.lead * column + g.images * g.source_plane;
  g.sums_at = g.result_at + g.images * g.result_plane;
  g.squares_at = g.sums_at + round_up(g.warps() * g.shape.taps * g.h.kernel * 4, 16);
  g.barriers_at = g.squares_at + round_up(g.warps() * kSquare * 4, 16);
  g.shared_bytes = g.barriers_at + 8;
  g.units = (problem.batch + g.images - 1) / g.images * g.bands;
  return g;
}

namespace {

// What an H100 gets through, for the choice among tilings and among families: fitted to 2,250
// timings of 339 random problems (float16), which are met within 16 %. The tiling that is chosen
// takes 1.1 % longer than the best of those that were tried, on average.
constexpr double kLaunchUs = 6.7;
constexpr double kSumUs = 2.4;                // the kernel that adds the partial sums
constexpr double kPartialBytesPerUs = 1.5e5;  // of those
constexpr double kBytesPerUs = 1.88e6;        // a large copy moves 3.0e6
constexpr double kAgain = 0.56;               // to read for another tile of the filter
constexpr double kCyclesPerUs = 1.75e3;       // of a multiprocessor
constexpr double kProductCycles = 1.29;       // of its four tensor cores together
constexpr double kWordCycles = 0.63;          // of shared memory, for 128 bytes that a warp reads
constexpr double kTurned = 0.81;              // against the forward pass
// Of a warp among others, for which it waits.
constexpr double kProductLatency = 5.9, kMatrixLatency = 17;
constexpr double kTurnLatency = 5.7;  // against its cycles, shared by the warps of a block
constexpr double kImageLatency = 140, kUnitLatency = 1140;
constexpr double kBlockCycles = 7200;
constexpr double kWave = 0.48;  // of blocks that have to wait for others
constexpr double kBeside = 0.35;

// Of a block and a unit: products' steps of all warps, and of the one that has most.
struct Steps {
  double all = 0, most = 0;
};
Steps steps_of(const SumGeometry& g) {
  Steps steps;
  for (int first = 0; first < g.tile_taps; first += g.shape.taps) {
    const int last = std::min(first + g.shape.taps, g.tile_taps) - 1;
    const int begin = std::max(0, g.w.pad - last) / g.step_columns;
    const int end = ceil_div(std::min(g.w.result, g.w.source + g.w.pad - first), g.step_columns);
    const int count = std::max(0, end - begin);
    steps.all += count;
    steps.most = std::max<double>(steps.most, ceil_div(count, g.splits));
  }
  return steps;
}

double estimate(const Problem& problem, const Arch& arch, const SumGeometry& g,
                std::int64_t slices) {
  const SumShape& s = g.shape;
  const double products = 2.0 * s.taps * s.squares();
  const double matrices = s.steps * (1.0 + s.taps);
  const Steps steps = steps_of(g);
  const double turn = kTurned * g.images * s.steps *
                      (ceil_div(g.w.source, kBlock) * turn_cycles(g.w.source) +
                       ceil_div(g.w.result, kBlock) * turn_cycles(g.w.result));

  const int resident = std::min(s.resident(), blocks_that_fit(arch, g.shared_bytes));
  const auto blocks = static_cast<double>(problem.channels * slices * g.tap_tiles);
  const double all = static_cast<double>(resident) * arch.multiprocessors;
  const double on_one = std::clamp<double>(blocks / arch.multiprocessors, 1, resident);
  const double waves = blocks <= all ? 1 : blocks / all + kWave;
  const double units = std::ceil(static_cast<double>(g.units) / static_cast<double>(slices));
  const double throughput =
      steps.all * std::max(products * kProductCycles, 4 * matrices * kWordCycles) + turn;
  const double alone = steps.most * (products * kProductLatency + matrices * kMatrixLatency) +
                       kUnitLatency + g.images * kImageLatency + turn * kTurnLatency / g.warps();
  const double unit = on_one * std::hypot(throughput, alone / on_one);
  const double compute = waves * (units * unit + kBlockCycles) / kCyclesPerUs;

  const double scale = arch.multiprocessors / 132.0;
  const double bytes = 2.0 * static_cast<double>(problem.input_numel() + problem.output_numel());
  const double memory = bytes * (1 + kAgain * (g.tap_tiles - 1)) / (kBytesPerUs * scale);
  const double us = kLaunchUs + std::max(compute, memory) + kBeside * std::min(compute, memory);
  if (slices == 1) return us;
  const auto partial = static_cast<double>(partials_of(problem, slices).bytes());
  return us + kSumUs + partial / (kPartialBytesPerUs * scale);
}

}  // namespace

SumPlan plan_sums(const Problem& problem, const Arch& arch) {
  const UnitChoice choice{.most_images = kStep,
                          .rows = static_cast<int>(problem.h.output()),
                          .threads = 0,
                          .resident = 2};
  return dwconv::plan_sums(
      problem, arch, choice, sum_geometry,
      [&](const SumGeometry& g) {
        return g.bands == 1 && g.shared_bytes <= shared_per_block(arch) &&
               g.unit_steps() <= kMostSteps;
      },
      [&](const SumGeometry& g, std::int64_t slices) {
        return estimate(problem, arch, g, slices);
      });
}

}  // namespace dwconv::columns
