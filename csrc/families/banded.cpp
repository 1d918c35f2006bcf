#include "banded.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>

#include "family.h"
#include "large_filters.h"
#include "row_pieces.h"

namespace dwconv {
namespace {

using namespace banded;

// What an H100 takes, for the choice among tilings and among families: fitted to 6,200 timings of
// 230 problems with up to 46 tilings each (float16, forward). Those near the best are met within
// 7 %; the tiling that is chosen is 2.2 % slower than the best of those on average.
constexpr double kLaunchUs = 6;
constexpr double kBytesPerUs = 3.8e6, kSmallPiecesPerUs = 1.9e6;  // rows of words and elements
constexpr double kCyclesPerUs = 1.75e3;                           // of a multiprocessor
constexpr double kHalfProduct = 0.69;  // of a product's time, with 8 columns
// A product of one warp among all, and of the tensor cores for each warp that has tasks; and a
// step, for each of those.
constexpr double kProductCycles = 11.1, kSharedProductCycles = 0.65, kSharedStepCycles = 6;
constexpr double kTaps = 256;  // of a filter, that a warp waits for at a time
constexpr double kTapsCycles = 1930;
constexpr double kCopyCycles = 26, kOddCopyCycles = 212;  // of lanes' pieces; pairs are waited for
constexpr double kOddStoreCycles = 86;                    // of 8 columns of a row of results
constexpr int kPlayedTasks = 400;
// Of all tilings the one is chosen that promises too much. With this, what is chosen of all
// families for 282 random problems is 2.0 % slower than the best of them, and 2.6 % with 1.
constexpr double kChosen = 1.1;

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

// What takes a warp how many cycles: to bring a unit, and how much later it begins to where stages
// come one by one; a task, and to store its results.
struct Cycles {
  double fill, gap, task, store;
};

// A block's cycles, as its warps take their tasks one by one, of units that are there, and who ends
// the last of a unit brings another into its stage. Units after the first some hundred tasks take
// as long as those.
double play(int units, int tasks, int stages, const Cycles& cycles) {
  std::array<double, kWarps> warps{};        // until when each has work
  std::array<double, kMostStages> filled{};  // when each is
  for (int slot = 0; slot < std::min(stages, units); ++slot)
    warps[slot] = filled[slot] = cycles.fill + slot * cycles.gap;
  const auto end = [&] { return *std::max_element(warps.begin(), warps.end()); };
  for (int unit = 0; unit < units; ++unit) {
    double& there = filled[unit % stages];
    for (int task = 0; task < tasks; ++task) {
      double& warp = *std::min_element(warps.begin(), warps.end());
      warp = std::max(warp, there) + cycles.task + cycles.store;
      if (task == tasks - 1 && unit + stages < units) there = warp += cycles.fill;
    }
    if ((unit + 1) * tasks > kPlayedTasks) return end() * units / (unit + 1);
  }
  return end();
}

double estimate(const Problem& problem, const Arch& arch, const Geometry& g, int stages) {
  const double scale = arch.multiprocessors / 132.0, rate = kBytesPerUs * scale;
  const auto blocks = static_cast<int>(std::clamp<std::int64_t>(g.units, 1, arch.multiprocessors));
  const auto units = static_cast<int>((g.units + blocks - 1) / blocks);

  const int copy_bytes = piece_bytes(g.w.source);
  const int pieces = g.shape.row_bytes() / std::max(copy_bytes, kWordBytes);
  const int rows_at_once = std::max(1, 32 / pieces);
  const double copies =
      static_cast<double>(g.images) * ceil_div(g.source_rows, rows_at_once) * ceil_div(pieces, 32);
  const double products = row_products(g) * g.shape.rows();
  const int at_work = static_cast<int>(
      std::min<std::int64_t>(kWarps, std::int64_t{std::min(stages, units)} * g.tasks()));

  Cycles cycles{};
  cycles.fill = std::ceil(g.tap_rows * g.taps / kTaps) * kTapsCycles +
                copies * (copy_bytes < kWordBytes ? kOddCopyCycles : kCopyCycles) +
                blocks * g.stage_bytes / rate * kCyclesPerUs;
  cycles.gap = come_one_by_one(g.stage_bytes, copy_bytes) ? cycles.fill : 0;
  cycles.task = steps_of_task(g) * (products * (kProductCycles + at_work * kSharedProductCycles) +
                                    at_work * kSharedStepCycles);
  if (piece_bytes(g.w.result) < kWordBytes)
    cycles.store = kOddStoreCycles * g.shape.blocks * g.shape.rows();

  const auto memory = [&](std::int64_t elements, int columns) {
    const double of_pieces = piece_bytes(columns) > kWordBytes ? kBytesPerUs : kSmallPiecesPerUs;
    return 2 * static_cast<double>(elements) / (of_pieces * scale);
  };
  const bool backward = problem.pass == Pass::backward_input;
  const std::int64_t input = problem.input_numel(), output = problem.output_numel();
  return kLaunchUs + play(units, g.tasks(), stages, cycles) / kCyclesPerUs +
         memory(backward ? output : input, g.w.source) +
         memory(backward ? input : output, g.w.result);
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
      Tiling tiling{
          .images = images, .rows = ceil_div(result, segments), .threads = kThreads, .places = 0};
      for (tiling.stages = 2; tiling.stages <= kMostStages; ++tiling.stages) {
        const Geometry g = geometry(problem, tiling);
        if (g.shared_bytes > shared_per_block(arch)) break;
        const double us = estimate(problem, arch, g, tiling.stages);
        if (best.us < 0 || us < best.us) best = {us, tiling};
        if (tiling.stages * std::int64_t{arch.multiprocessors} >= g.units) break;
      }
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
  plan.estimate_us = kChosen * best.us;
  leave_small_filters(plan, problem);
  return plan;
}

}  // namespace

const FamilyPlanner kBandedPlanner{plan_launch, spreads_nonfinite};

}  // namespace dwconv
