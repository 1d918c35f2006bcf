#include "banded.h"

#include <cmath>
#include <optional>

#include "family.h"
#include "large_filters.h"
#include "row_pieces.h"

namespace dwconv {
namespace {

using namespace banded;

// What an H100 gets through, for the choice among tilings and among families: fitted to 5,700
// timings of 300 problems with some 19 tilings each (float16, both passes). They are met within
// 20 %; the tiling that is chosen is 3.5 % slower than the best on average.
constexpr double kLaunchUs = 3;
constexpr double kBytesPerUs = 2.3e6;         // a large copy moves 3.0e6
constexpr double kStagedBytesPerUs = 2.95e6;  // of what units read more than once
constexpr double kCyclesPerUs = 1.75e3;       // of a multiprocessor
constexpr double kHalfProduct = 0.4;          // of a product's time, with 8 columns
constexpr double kProductCycles = 1.84;       // of the four tensor cores together
constexpr double kStepCycles = 7.7;
constexpr double kLatency = 14.7;       // of one warp among all, for a product
constexpr double kStepLatency = 60;     // and for a step beside its products
constexpr double kTaskLatency = 340;    // and to find a task
constexpr double kWaitingTasks = 1.07;  // of a unit, until its stage is filled again
constexpr double kTaps = 256;           // of a filter, that a warp waits for at a time
constexpr double kTapsCycles = 2080;

// What the width of a row costs: cycles to store 8 columns of a row of results, and to start a copy
// of a lane's piece, or, where rows are odd, to wait for two elements.
struct WidthCosts {
  int copy_bytes;
  double store, copy;
};
constexpr WidthCosts width_costs(int columns) {
  switch (const int bytes = piece_bytes(columns)) {
    case 16:
      return {bytes, 8, 31};
    case 8:
      return {bytes, 8, 9};
    case 4:
      return {bytes, 8, 10};
    default:
      return {bytes, 61, 174};
  }
}

// Products for a row of the image and one of a tile's results.
double row_products(const Geometry& g) {
  const Shape& s = g.shape;
  double products = 0;
  for (int result = 0; result < s.blocks; ++result) {
    for (int pair = 0; pair < s.blocks; pair += 2) {
      const auto meets = [&](int block) { return std::abs(block - result) <= s.reach; };
      const bool second = pair + 1 < s.blocks && meets(pair + 1);
      products += meets(pair) && second ? 1 : meets(pair) || second ? kHalfProduct : 0;
    }
  }
  return products;
}

// Rows of the image that a group of rows of results meets, on average.
double steps_of_task(const Geometry& g) {
  double steps = 0;
  const int rows = g.shape.rows();
  for (int group = 0; group < g.row_groups; ++group) {
    const int first = group * rows - g.h.pad;
    const int last = first + (g.bands - 1) * g.band_rows;  // of the last band
    const int begin = std::max(0, -last);
    const int end = std::min(g.h.kernel + rows - 1, g.h.source - first);
    steps += std::max(0, end - begin);
  }
  return steps / g.row_groups;
}

double estimate(const Problem& problem, const Arch& arch, const Geometry& g, int stages) {
  const auto units_in_all = static_cast<double>(g.units);
  const double blocks = std::max(std::min<double>(units_in_all, arch.multiprocessors), 1.0);
  const double units = std::ceil(units_in_all / blocks);
  const WidthCosts source = width_costs(g.w.source), result = width_costs(g.w.result);

  // Of a warp: to bring a unit, to store a task's results, and a task among others.
  const int pieces = g.shape.row_bytes() / std::max(source.copy_bytes, kWordBytes);
  const int rows_at_once = std::max(1, 32 / pieces);
  const double copies =
      static_cast<double>(g.images) * ceil_div(g.source_rows, rows_at_once) * ceil_div(pieces, 32);
  const double fill = std::ceil(g.tap_rows * g.taps / kTaps) * kTapsCycles + copies * source.copy;
  const double store = result.store * g.shape.blocks * g.shape.rows();
  const double products = row_products(g) * g.shape.rows();
  const double steps = steps_of_task(g);
  const double task = steps * (products * kLatency + kStepLatency) + kTaskLatency;

  // Of a multiprocessor: its tensor cores; warps that take turns; stages that are filled again.
  const double tasks = units * g.tasks();
  const double work = tasks * (steps * (products * kProductCycles + kStepCycles) + store);
  const double serial = std::ceil(tasks / kWarps) * task + units * fill / kWarps;
  const double waiting = units * (fill + kWaitingTasks * task) / std::min<double>(stages, units);
  const double compute =
      std::pow(std::pow(work, 4) + std::pow(serial, 4) + std::pow(waiting, 4), 0.25) / kCyclesPerUs;

  const double scale = arch.multiprocessors / 132.0;
  const double bytes = 2.0 * static_cast<double>(problem.input_numel() + problem.output_numel());
  const double staged = units_in_all * g.filters_at;
  const double memory = std::max(bytes / kBytesPerUs, staged / kStagedBytesPerUs) / scale;
  const double first = fill / kCyclesPerUs + blocks * g.stage_bytes / (kBytesPerUs * scale);
  return kLaunchUs + first + compute + memory;
}

struct Candidate {
  double us = -1;
  Tiling tiling;
};

Candidate search(const Problem& problem, const Arch& arch) {
  Candidate best;
  const int result = window_of(problem, problem.h).result;
  for (const int images : {64, 32, 16, 8, 4, 2, 1}) {
    if (images > 1 && images / 2 >= problem.batch) continue;
    for (int segments = 1; segments <= 64; segments *= 2) {
      Tiling tiling{.images = images,
                    .rows = ceil_div(result, segments),
                    .stages = 2,
                    .threads = kThreads,
                    .places = 0};
      Geometry g = geometry(problem, tiling);
      if (g.shared_bytes > shared_per_block(arch)) continue;
      const int room = shared_per_block(arch) - g.shared_bytes;
      tiling.stages += std::min(room / (g.stage_bytes + 12), kMostStages - 2);
      g = geometry(problem, tiling);
      const double us = estimate(problem, arch, g, tiling.stages);
      if (best.us < 0 || us < best.us) best = {us, tiling};
      if (segments >= result) break;
    }
  }
  return best;
}

std::optional<std::string> refuse(const Problem& problem, const Arch& arch) {
  if (arch.compute_capability < 80) return "it needs the tensor cores of sm_80 or newer";
  if (auto reason = refuse_all_but_plain(problem)) return reason;
  if (auto reason = refuse_too_large(problem)) return reason;
  const Geometry g = geometry(problem, {});
  if (g.shape.reach > kMaxReach) return "its filters are too wide for it";
  if (g.units >= std::int64_t{1} << 31) return "it counts its units in 32 bits";
  return std::nullopt;
}

// The zeros of the matrices meet every number of a row that is near a result.
bool spreads_nonfinite(const Problem&) { return true; }

Answer plan_launch(const Kernel& kernel, const Problem& problem, const Arch& arch) {
  if (auto reason = refuse(problem, arch)) return *std::move(reason);
  const Candidate best = search(problem, arch);
  if (best.us < 0) return "its rows do not fit the shared memory of the device";
  Plan plan;
  plan.kernel = &kernel;
  plan.blocks = std::min<std::int64_t>(geometry(problem, best.tiling).units, arch.multiprocessors);
  plan.threads = kThreads;
  plan.in_turn = true;
  plan.tiling = best.tiling;
  plan.estimate_us = best.us;
  leave_small_filters(plan, problem);
  return plan;
}

}  // namespace

const FamilyPlanner kBandedPlanner{plan_launch, spreads_nonfinite};

}  // namespace dwconv
