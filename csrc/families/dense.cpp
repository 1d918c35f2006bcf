#include "dense.h"

#include <cmath>
#include <optional>

#include "family.h"
#include "large_filters.h"

namespace dwconv {

namespace dense {

Geometry geometry(const Problem& problem, const Tiling& tiling) {
  Geometry g;
  g.h = window_of(problem, problem.h);
  g.w = window_of(problem, problem.w);
  g.source_plane = g.h.source * g.w.source;
  g.result_plane = g.h.result * g.w.result;
  g.shape.small = std::max(g.source_plane, g.result_plane) <= 64;
  g.shape.even = g.source_plane % 2 == 0 && g.result_plane % 2 == 0;
  g.steps = ceil_div(g.source_plane, kStep);
  g.jobs = ceil_div(ceil_div(g.result_plane, kBlock), g.shape.blocks());
  g.apart_h = g.h.source + g.h.result - 1;
  g.apart_w = g.w.source + g.w.result - 1;

  g.channels = tiling.planes;
  g.groups = static_cast<int>((problem.channels + g.channels - 1) / g.channels);
  g.image_blocks = static_cast<int>((problem.batch + kImages - 1) / kImages);
  g.units = static_cast<std::int64_t>(g.groups) * g.image_blocks;

  // Lanes read up to a product's elements beyond the last plane: nothing else may be there, lest it
  // be written just then.
  g.source_step = odd_run_bytes(std::int64_t{g.channels} * g.source_plane + kStep);
  g.result_step = odd_run_bytes(std::int64_t{g.channels} * g.result_plane);
  g.filters_at = kImages * g.source_step;
  g.stage_bytes = g.filters_at + run_bytes(g.channels * problem.taps(), 2);
  g.results_at = tiling.stages * g.stage_bytes;
  g.result_bytes = kImages * g.result_step;
  g.taps_at = g.results_at + 2 * g.result_bytes;
  g.barriers_at = g.taps_at + round_up(g.channels * g.taps() * 2, 16);
  g.shared_bytes = g.barriers_at + 8 * tiling.stages;
  return g;
}

}  // namespace dense

namespace {

using namespace dense;

// What an H100 gets through, for the choice among tilings and among families: of 119 random passes
// in the middle. Between this family and banded the choice is 1.6 % slower than the better one on
// average.
constexpr double kBytesPerUs = 2.4e6;  // a large copy moves 3.0e6
constexpr double kLaunchUs = 5;
constexpr double kCyclesPerUs = 1.75e3;  // of a multiprocessor
constexpr double kProductCycles = 1.9;   // of its four tensor cores together
constexpr double kLoadCycles = 2;        // of the elements of a product, by one of its warps
constexpr double kStoreCycles = 3;       // of a product's results
constexpr double kMatrixCycles = 3.5;    // of a product's part of the matrix
constexpr double kUnitCycles = 1300;     // of a block
constexpr double kGroupCycles = 4000;

double estimate(const Problem& problem, const Arch& arch, const Geometry& g, const Tiling& tiling,
                const Deal& deal) {
  const auto blocks = static_cast<double>(std::max<std::int64_t>(deal.blocks, 1));
  const double on_one = std::ceil(blocks / arch.multiprocessors);
  const double warps = g.warps();
  const double products = static_cast<double>(g.steps) * g.shape.blocks();
  const double unit =
      warps * (products * kProductCycles + g.steps * kLoadCycles * (g.shape.even ? 1 : 2.5) +
               g.shape.blocks() * kStoreCycles * (g.shape.even ? 1 : 2));
  const double matrix = warps * products * 4 * kMatrixCycles / 4 + kGroupCycles / on_one;
  const double groups = std::ceil(deal.longest / g.image_blocks + 0.5);
  const double compute =
      on_one * (deal.longest * (unit + kUnitCycles / on_one) + groups * matrix) / kCyclesPerUs;
  const double scale = arch.multiprocessors / 132.0;
  const double bytes =
      2.0 * static_cast<double>(problem.input_numel() + problem.output_numel()) +
      2.0 * static_cast<double>(g.units) * g.channels * static_cast<double>(problem.taps());
  const double memory = bytes / (kBytesPerUs * scale);
  const double first = blocks * g.stage_bytes / (kBytesPerUs * scale);
  return kLaunchUs + std::max(memory, compute) + 0.3 * std::min(memory, compute) + 0.5 * first +
         (tiling.stages < 3 ? 1 : 0);
}

// The tiling with the lowest estimate; us < 0 where none fits.
Candidate search(const Problem& problem, const Arch& arch) {
  Candidate best;
  for_each_tiling(
      problem, arch, geometry, [&](const Geometry& g, const Tiling& tiling, int resident) {
        const std::int64_t all = static_cast<std::int64_t>(resident) * arch.multiprocessors;
        const Deal deal = deal_runs(g.groups, g.image_blocks, all, false);
        const double us = estimate(problem, arch, g, tiling, deal);
        if (best.us < 0 || us < best.us) best = {tiling, deal, us};
      });
  return best;
}

std::optional<std::string> refuse(const Problem& problem, const Arch& arch) {
  const Axis &h = problem.h, &w = problem.w;
  if (arch.compute_capability < 80) return "it needs the tensor cores of sm_80 or newer";
  if (auto reason = refuse_all_but_plain(problem)) return reason;
  constexpr std::int64_t kMaxSide = 1 << 10;
  if (std::max({h.input, w.input, h.output(), w.output(), h.kernel, w.kernel, h.pad_before,
                w.pad_before}) > kMaxSide ||
      problem.batch >= std::int64_t{1} << 31 || problem.channels >= std::int64_t{1} << 31) {
    return "images, filters, batch or channels are too large for it";
  }
  const Geometry g = geometry(problem, {});
  if (g.steps > g.shape.steps() || g.jobs > g.shape.warps()) {
    return "it takes images of up to 208 elements";
  }
  return std::nullopt;
}

// Zeros of the matrix meet every element of an image; where the filter reaches all of them there
// are none.
bool spreads_nonfinite(const Problem& problem) { return !reaches_all(problem); }

Answer plan_launch(const Kernel& kernel, const Problem& problem, const Arch& arch) {
  if (auto reason = refuse(problem, arch)) return *std::move(reason);
  const Candidate best = search(problem, arch);
  if (best.us < 0) return "its units do not fit the shared memory of the device";
  Plan plan = plan_of(kernel, problem, arch, best, geometry(problem, best.tiling));
  leave_small_filters(plan, problem);
  return plan;
}

}  // namespace

const FamilyPlanner kDensePlanner{plan_launch, spreads_nonfinite};

}  // namespace dwconv
