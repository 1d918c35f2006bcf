#include "ring.h"

#include <cmath>
#include <optional>

#include "family.h"
#include "rows_planner.h"

namespace dwconv {
namespace ring {

Geometry geometry(const Problem& problem, const Tiles& tiles) {
  const Filter filter{static_cast<int>(problem.h.kernel), static_cast<int>(problem.w.kernel)};
  Geometry g = rows::units_of(
      problem, tiles,
      shape_of(problem.pass, problem.dtype, filter, static_cast<int>(problem.h.stride)));
  const auto bytes = static_cast<int>(size_of(problem.dtype));
  g.lanes = g.vectors > kLanes ? 2 * kLanes : kLanes;
  g.pixel_bytes = g.lanes * g.shape.channels * bytes;
  const bool weight = problem.pass == Pass::backward_weight;
  g.grad_pixels = weight ? g.strips * g.shape.columns : 0;
  g.grad_at = round_up(g.images * g.pixels * g.pixel_bytes, rows::kBoxAlignment);
  g.stage_bytes =
      g.grad_at + round_up(g.images * g.grad_pixels * g.pixel_bytes, rows::kBoxAlignment);
  // Filters, or sums of all threads, have the same place before and after.
  const int others = 4 * (weight ? kSumBatch * g.threads() * g.shape.channels
                                 : g.width * static_cast<int>(problem.taps()));
  const int stages = stages_of(problem.pass, filter);
  g.shared_bytes = rows::control_bytes(stages) + std::max(stages * g.stage_bytes, others);
  return g;
}

}  // namespace ring

namespace {

using namespace ring;
using rows::Found;
using rows::Turns;

// What an H100 gets through, for the choice among tilings and among families. Fitted to 911 timings
// on 500 problems, most of them random: the choice is 3.3 % slower than the best tiling that was
// tried on average. Launch, lines and blocks were then set by hand, so that of 522 problems the
// choice between this family and strip is 3.1 % slower than the better one.
constexpr double kLaunchUs = 6.5;  // with the first rows and the last ones
constexpr double kSumUs = 2.5;     // the kernel that adds the partial sums
constexpr rows::Memory kMemory{
    .bytes_per_us = 2.7e6, .reread = 0.34, .narrow = 0.07, .partly = 0.29};
constexpr double kIssuePerUs = 5.2e3;  // warp instructions of a multiprocessor, at best
constexpr double kWarps = 13.4;        // that keep its issue slots busy; fewer do so less
constexpr double kWarpsPower = 0.83;   // by this power
constexpr double kStepInstructions = 11;
constexpr double kMoves = 1.76;        // of a weight gradient: a gradient moves on by a row
constexpr double kSmallStepUs = 0.49;  // of one warp alone, and so much more for each instruction
constexpr double kAloneUs = 0.45 / 400;
constexpr double kOutside = 0.52;  // of a step's time, where its row is not there
constexpr double kUnitUs = 0.28;
constexpr double kBlockUs = 0.12;   // of a block's start, which keeps its multiprocessor busy
constexpr double kConflicts = 1.2;  // lanes of different strips meet in the same banks
constexpr double kPartials = 32;    // bytes that a partial sum costs

// Instructions of a thread for one row.
double step_instructions(const Problem& problem, const Geometry& g) {
  const Shape& s = g.shape;
  const double stride = g.h.stride;
  const double products = static_cast<double>(problem.taps()) * s.columns * s.channels / stride;
  const double load = problem.dtype == DType::float32 ? 1 : 1 + s.channels;
  const double source = ((s.columns - 1) * g.w.stride + g.w.kernel) * load;
  const double other = problem.pass == Pass::backward_weight
                           ? load + kMoves * s.channels * (g.h.kernel / stride - 1)
                           : load + 2;
  const double results = by_phases(problem) ? 4 : 1;
  return kStepInstructions + products + source + results * s.columns * other / stride;
}

// The tiles of a problem with blocks that take them in turn, `resident` of which run at a time on a
// multiprocessor.
Found estimate(const Problem& problem, const Arch& arch, const Tiles& tiles, const Geometry& g,
               int resident) {
  const bool weight = problem.pass == Pass::backward_weight;
  const Turns t(problem, arch, g, resident, kMostProducts);

  const double inside = std::min(g.steps, ceil_div(g.h.source, g.row_classes));
  const double instructions = step_instructions(problem, g);
  const double busy = std::min(1.0, std::pow(t.warps / kWarps, kWarpsPower));
  const double conflicts = g.lanes % g.vectors == 0 ? 1 : kConflicts;
  const double step_us = std::max(conflicts * t.warps * instructions / (kIssuePerUs * busy),
                                  kSmallStepUs + kAloneUs * instructions);
  const double compute =
      t.waves * t.rounds *
      (inside * step_us + (g.steps - inside) * std::max(kOutside * step_us, kSmallStepUs) +
       kUnitUs);

  const double memory = rows::memory_us(problem, arch, g, kMemory);
  const double sums = weight ? kSumUs + t.blocks * g.width * static_cast<double>(problem.sums()) *
                                            kPartials / kMemory.bytes_per_us
                             : 0;
  const double us = kLaunchUs + sums + kBlockUs * t.waves * t.on_one + std::max(memory, compute) +
                    0.08 * std::min(memory, compute);
  return {us, tiles, t.slices};
}

Found search(const Problem& problem, const Arch& arch) {
  const Filter filter{static_cast<int>(problem.h.kernel), static_cast<int>(problem.w.kernel)};
  const auto stride = static_cast<int>(problem.h.stride);
  const auto bytes = static_cast<int>(size_of(problem.dtype));
  const Geometry one = geometry(problem, {rows::kCopyBytes / bytes, 1, 1, 1});
  const int most_width = (has_many_lanes(filter) ? 2 : 1) * kLanes * one.shape.channels;
  return rows::search(
      problem, arch, one, most_width, [&](const Tiles& tiles) { return geometry(problem, tiles); },
      [&](const Geometry& g) {
        return g.threads() > kMaxThreads ? 0
                                         : resident_blocks(problem.pass, filter, g.shape, stride) *
                                               kMaxThreads / g.threads();
      },
      [&](const Tiles& tiles, const Geometry& g, int resident) {
        return estimate(problem, arch, tiles, g, resident);
      });
}

bool is_compiled(const Filter& filter) {
  for (const Filter& compiled : kFilters)
    if (filter == compiled) return true;
  return false;
}

// As in strip: a gradient that a unit lacks is a zero that meets an image.
bool spreads_nonfinite(const Problem& problem) { return problem.pass == Pass::backward_weight; }

Answer plan_launch(const Kernel& kernel, const Problem& problem, const Arch& arch) {
  if (auto reason = rows::refuse(problem, arch)) return *std::move(reason);
  if (!is_compiled({static_cast<int>(problem.h.kernel), static_cast<int>(problem.w.kernel)}))
    return "it is compiled for filters of other sizes";
  const Found best = search(problem, arch);
  if (best.us < 0) return "its rows do not fit the shared memory of the device";
  const Geometry g = geometry(problem, best.tiles);
  return rows::plan_of(kernel, problem, g, best, stages_of(problem.pass, {g.h.kernel, g.w.kernel}));
}

}  // namespace

const FamilyPlanner kRingPlanner{plan_launch, spreads_nonfinite};

}  // namespace dwconv
