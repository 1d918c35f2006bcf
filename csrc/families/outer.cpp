#include "outer.h"

#include <cmath>
#include <optional>

#include "family.h"
#include "large_filters.h"

namespace dwconv {

namespace outer {

Geometry geometry(const Problem& problem, const Tiling& tiling) {
  Geometry g;
  g.h = forward_window(problem.h);
  g.w = forward_window(problem.w);
  const int columns = std::max(g.w.source, g.w.result);
  const bool low = std::max(g.h.source, g.h.result) <= kFewColumns;
  g.shape.columns = columns <= kFewColumns && low ? kFewColumns
                    : columns <= kSomeColumns     ? kSomeColumns
                                                  : kMostColumns;
  // A pair of elements may only be read at a time if all rows begin with one.
  g.shape.even = !g.shape.paired() && g.w.source % 2 == 0 && g.w.result % 2 == 0;
  g.source_plane = g.h.source * g.w.source;
  g.result_plane = g.h.result * g.w.result;

  g.tap_rows = met_taps(g.h, g.first_tap_row).kernel;
  g.jobs = g.shape.paired() ? 1 : ceil_div(g.tap_rows, g.shape.rows());

  g.channels = tiling.planes;
  g.groups = static_cast<int>((problem.channels + g.channels - 1) / g.channels);
  g.image_blocks = static_cast<int>((problem.batch + kImages - 1) / kImages);
  g.units = static_cast<std::int64_t>(g.groups) * g.image_blocks;

  // Lanes read up to a row of columns beyond the last row of the last plane, or two: nothing else
  // may be there, lest it be written just then.
  const auto step = [&](int plane, int width) {
    return odd_run_bytes(std::int64_t{g.channels} * plane + 2 * width + kMostColumns);
  };
  g.source_step = step(g.source_plane, g.w.source);
  g.result_step = step(g.result_plane, g.w.result);
  g.grad_at = kImages * g.source_step;
  g.stage_bytes = g.grad_at + kImages * g.result_step;
  g.zeros_at = tiling.stages * g.stage_bytes;
  g.sums_at = g.zeros_at + 2 * kMostColumns;
  g.squares_at = g.sums_at + round_up(g.channels * static_cast<int>(problem.sums()) * 4, 16);
  g.barriers_at = g.squares_at + round_up(g.warps() * g.shape.squares() * 4, 16);
  g.shared_bytes = g.barriers_at + 8 * tiling.stages;
  return g;
}

}  // namespace outer

namespace {

using namespace outer;

// What an H100 gets through, for the choice among tilings and among families: of 204 random
// problems in the middle. Between this family and banded the choice is 1 % slower than the better
// one on average.
constexpr double kBytesPerUs = 2.7e6;  // a large copy moves 3.0e6
constexpr double kLaunchUs = 5;
constexpr double kSumUs = 5.8;               // the kernel that adds the partial sums
constexpr double kCyclesPerUs = 1.75e3;      // of a multiprocessor
constexpr double kProductCycles = 2.2;       // of its four tensor cores together
constexpr double kStepCycles = 30;           // of a row of the image, to be brought into registers
constexpr double kStepLatency = 150;         // of one warp
constexpr double kUnitCycles = 1500;         // of a block
constexpr double kSquareCycles = 300;        // of a row of the filter, to add its diagonals
constexpr double kBytesInFlight = 48 << 10;  // of a multiprocessor, to keep the memory busy

// Rows of the image that the rows of the filter of one warp meet, and of the warp with most.
struct Steps {
  double all = 0, longest = 0;
};
Steps steps_of(const Geometry& g) {
  if (g.shape.paired()) return {(g.h.source + 1) / 2.0, (g.h.source + 1) / 2.0};
  Steps steps;
  for (int job = 0; job < g.jobs; ++job) {
    const int shift = g.h.pad - g.first_row(job);
    const int first = std::max(0, -shift);
    const int last = std::min(g.h.source, g.h.result + g.shape.rows() - 1 - shift);
    const double count = std::max(0, last - first);
    steps.all += count;
    steps.longest = std::max(steps.longest, count);
  }
  return steps;
}

double estimate(const Problem& problem, const Arch& arch, const Geometry& g, const Tiling& tiling,
                const Deal& deal) {
  const double units = std::max<double>(static_cast<double>(g.units), 1);
  const auto blocks = static_cast<double>(std::max<std::int64_t>(deal.blocks, 1));
  const double on_one = std::ceil(blocks / arch.multiprocessors);
  const Steps steps = steps_of(g);
  const double products = g.shape.rows() * g.shape.blocks_m() * g.shape.blocks_n();
  const double loads = (g.shape.even ? 0.5 : 1) * (g.shape.blocks_m() + g.shape.blocks_n() / 2.0);
  const double work =
      g.channels * steps.all * (products * kProductCycles + loads * kStepCycles / 2);
  const double latency = steps.longest * (products * 8 + kStepLatency);
  const double unit = std::max(on_one * work, latency) + kUnitCycles;
  const double groups = std::ceil(deal.longest / std::max(g.image_blocks, 1));
  const double squares = groups * on_one * g.channels * g.tap_rows * kSquareCycles / 4;
  const double compute = (deal.longest * unit + squares) / kCyclesPerUs;

  const double scale = arch.multiprocessors / 132.0;
  const double bytes = 2.0 * static_cast<double>(problem.input_numel() + problem.output_numel());
  const double in_flight = on_one * std::max(tiling.stages - 1, 1) * g.stage_bytes;
  const double memory = bytes / (kBytesPerUs * scale) * std::max(1.0, kBytesInFlight / in_flight) *
                        deal.longest / (units / blocks);
  const double first = std::min(blocks, units) * g.stage_bytes / (kBytesPerUs * scale);
  double us = kLaunchUs + std::max(memory, compute) + 0.2 * std::min(memory, compute) + 0.5 * first;
  if (!deal.whole_groups) {
    const Partials partials = partials_of(problem, g, deal.blocks, false);
    us += kSumUs + static_cast<double>(partials.bytes()) / (kBytesPerUs * scale);
  }
  return us;
}

// The tiling with the lowest estimate; us < 0 where none fits.
Candidate search(const Problem& problem, const Arch& arch) {
  Candidate best;
  for_each_tiling(
      problem, arch, geometry, [&](const Geometry& g, const Tiling& tiling, int resident) {
        consider_deals(best, problem, arch, g, tiling, resident,
                       [&](const Deal& deal) { return estimate(problem, arch, g, tiling, deal); });
      });
  return best;
}

std::optional<std::string> refuse(const Problem& problem, const Arch& arch) {
  const Axis &h = problem.h, &w = problem.w;
  if (arch.compute_capability < 80) return "it needs the tensor cores of sm_80 or newer";
  if (auto reason = refuse_all_but_plain(problem)) return reason;
  if (std::max(w.input, w.output()) > kMostColumns) {
    return "it takes images of up to " + std::to_string(kMostColumns) + " columns";
  }
  constexpr std::int64_t kMaxSide = 1 << 12;
  if (std::max({h.input, h.output(), h.kernel, w.kernel, h.pad_before, w.pad_before}) > kMaxSide ||
      problem.batch >= std::int64_t{1} << 31 || problem.channels >= std::int64_t{1} << 31) {
    return "images, filters, batch or channels are too large for it";
  }
  const Geometry g = geometry(problem, {});
  if (g.jobs > g.shape.warps()) return "its filters have too many rows for it";
  return std::nullopt;
}

// Rows that the output gradient lacks are zeros that meet the image: the same columns of other rows
// of the filter.
bool spreads_nonfinite(const Problem&) { return true; }

Answer plan_launch(const Kernel& kernel, const Problem& problem, const Arch& arch) {
  if (auto reason = refuse(problem, arch)) return *std::move(reason);
  const Candidate best = search(problem, arch);
  if (best.us < 0) return "its units do not fit the shared memory of the device";
  Plan plan = plan_of(kernel, problem, arch, best, geometry(problem, best.tiling));
  leave_small_filters(plan, problem);
  return plan;
}

}  // namespace

const FamilyPlanner kOuterPlanner{plan_launch, spreads_nonfinite};

}  // namespace dwconv
