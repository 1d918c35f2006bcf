#include "columns.h"

#include <cmath>
#include <optional>

#include "columns_wgrad.h"
#include "family.h"
#include "large_filters.h"

namespace dwconv {
namespace {

using namespace columns;

// What an H100 gets through, for the choice among tilings and among families: fitted to 2,700
// timings of 390 problems (float16, forward pass and input gradient), which are met within 14 %.
// The tiling that is chosen takes 1.8 % longer than the best of those that were tried, on average.
constexpr double kLaunchUs = 7;
constexpr double kBytesPerUs = 2.09e6;   // a large copy moves 3.0e6
constexpr double kCyclesPerUs = 1.75e3;  // of a multiprocessor
constexpr double kProductCycles = 1.44;  // of its four tensor cores together
constexpr double kWordCycles = 0.58;     // of shared memory, for 128 bytes that a warp reads
constexpr double kMatrixCycles = 2.7;    // of a product's taps, or an image's words
constexpr double kStoreCycles = 0.87, kOddStoreCycles = 1.89;  // of 8 rows of a block of results
constexpr double kTaskCycles = 57, kUnitCycles = 92;
constexpr double kTapsCycles = 0.25;  // of two words of taps
// Of a warp among others, for which it waits.
constexpr double kProductLatency = 9.8, kMatrixLatency = 33, kTaskLatency = 420;
constexpr double kUnitLatency = 1700;
constexpr double kTurnLatency = 5.8;  // against its cycles, shared by the warps of a block
constexpr double kFirst = 0.48, kBeside = 0.35;
// Of all tilings the one is chosen that promises too much; this and the launch, of 9 us by the fit,
// by what was chosen for 248 problems: met within 12 %, where it had been 15.
constexpr double kChosen = 1.13;

// What warps do for the tasks of a unit.
struct Work {
  double products = 0;
  double matrices = 0;  // of taps, and times that an image's words are read
  double words = 0;     // of shared memory, 128 bytes
};

Work work_of(const Geometry& g) {
  const int steps = g.shape.steps, blocks = g.shape.blocks();
  Work tap;
  for (int tile = 0; tile < g.tiles; ++tile) {
    for (int first = 0; first < ceil_div(g.source_rows(), kStep); first += steps) {
      int matrices = 0;
      for (int d = 1 - steps; d < steps; ++d) {
        const int nearest = (first - tile * steps + d) * kStep + g.h.pad;
        if (steps > 2 && (nearest + kStep - 1 < 0 || nearest - kStep + 1 >= g.h.kernel)) continue;
        ++matrices;
        tap.products += (steps - std::abs(d)) * blocks;
      }
      if (matrices == 0) continue;
      tap.matrices += matrices + 1;
      tap.words += blocks * 2 * steps + matrices * 4;
    }
  }
  double taps = 0;
  for (int group = 0; group < g.column_groups; ++group) {
    const int first = group * g.blocks_across() * kBlock;
    const int last = std::min(first + g.blocks_across() * kBlock, g.w.result) - 1;
    taps += std::max(
        0, std::min(g.w.kernel, g.w.source + g.w.pad - first) - std::max(0, g.w.pad - last));
  }
  taps *= g.channels * g.image_groups;
  return {taps * tap.products, taps * tap.matrices, taps * tap.words};
}

double estimate(const Problem& problem, const Arch& arch, const Geometry& g, const Tiling& tiling,
                int resident, const Deal& deal) {
  const auto blocks = static_cast<double>(std::max<std::int64_t>(deal.blocks, 1));
  const double on_one = std::clamp(blocks / arch.multiprocessors, 1.0, double(resident));
  const double warps = tiling.threads / 32, tasks = g.tasks;
  const Work work = work_of(g);

  const double turn = static_cast<double>(g.channels) * g.images * ceil_div(g.w.source, kBlock) *
                      g.source_tiles * g.shape.steps * turn_cycles(g.w.source);
  const double store = tasks * g.shape.blocks() * 2 * g.shape.steps *
                       (g.w.result % 2 == 0 ? kStoreCycles : kOddStoreCycles);
  const double per_group = static_cast<double>(g.image_blocks) * g.bands;
  const double groups = std::ceil(deal.longest / per_group + 0.5) / deal.longest;  // for a unit
  const double taps = g.taps_bytes / 8.0 * kTapsCycles * groups;

  // A unit's time: of a multiprocessor, and of a block alone, of which others run beside it.
  const double throughput = std::max(work.products * kProductCycles, work.words * kWordCycles) +
                            turn + store + taps + tasks * kTaskCycles +
                            work.matrices * kMatrixCycles + kUnitCycles;
  const double task =
      (work.products * kProductLatency + work.matrices * kMatrixLatency) / tasks + kTaskLatency;
  const double alone =
      std::ceil(tasks / warps) * task + kUnitLatency + (turn + store + taps) * kTurnLatency / warps;
  const double unit = std::hypot(throughput, alone / on_one);
  const double compute = on_one * deal.longest * unit / kCyclesPerUs;

  const double rate = kBytesPerUs * arch.multiprocessors / 132;
  const double memory =
      (2.0 * static_cast<double>(problem.input_numel() + problem.output_numel()) +
       2.0 * static_cast<double>(g.units) * g.channels * static_cast<double>(problem.taps())) /
      rate;
  return kLaunchUs + std::max(memory, compute) + kBeside * std::min(memory, compute) +
         kFirst * blocks * g.stage_bytes / rate;
}

// The tiling with the lowest estimate; us < 0 where none fits.
Candidate search(const Problem& problem, const Arch& arch) {
  Candidate best;
  const auto consider = [&](const Tiling& tiling) {
    const Geometry g = geometry(problem, tiling);
    if (g.shared_bytes > shared_per_block(arch)) return false;
    const int resident =
        std::min(2 * kMostThreads / tiling.threads, blocks_that_fit(arch, g.shared_bytes));
    const std::int64_t all = static_cast<std::int64_t>(resident) * arch.multiprocessors;
    const std::int64_t per_group = static_cast<std::int64_t>(g.image_blocks) * g.bands;
    const Deal deal = deal_runs(g.groups, per_group, all, false);
    const double us = estimate(problem, arch, g, tiling, resident, deal);
    if (best.us < 0 || us < best.us) best = {tiling, deal, us};
    return true;
  };
  const Geometry any = geometry(problem, {});
  const auto most_images = static_cast<int>(std::min<std::int64_t>(problem.batch, 64));
  Tiling tiling{.places = 0};
  for (tiling.threads = kMostThreads / 2; tiling.threads <= kMostThreads; tiling.threads *= 2) {
    for (tiling.images = 1; tiling.images < 2 * most_images; tiling.images *= 2) {
      for (tiling.columns = 1; tiling.columns <= std::min(any.shape.blocks(), tiling.images);
           tiling.columns *= 2) {
        tiling.rows = any.h.result;
        for (tiling.planes = 1; tiling.planes <= std::min<std::int64_t>(16, problem.channels);
             tiling.planes *= 2)
          consider(tiling);
        tiling.planes = 1;
        for (int tiles = 1; tiles * any.shape.rows() < any.h.result; ++tiles) {
          tiling.rows = tiles * any.shape.rows();
          if (!consider(tiling)) break;
        }
      }
    }
  }
  return best;
}

std::optional<std::string> refuse(const Problem& problem, const Arch& arch) {
  if (arch.compute_capability < 80) return "it needs the tensor cores of sm_80 or newer";
  if (auto reason = refuse_all_but_plain(problem)) return reason;
  if (problem.pass == Pass::backward_weight &&
      std::max(problem.h.input, problem.h.output()) > kMostSumRows) {
    return "it takes images of up to " + std::to_string(kMostSumRows) + " rows";
  }
  return refuse_too_large(problem);
}

// The zeros of the matrices meet every number of a column that is near a result.
bool spreads_nonfinite(const Problem& problem) {
  return problem.pass == Pass::backward_weight || !reaches_all(problem);
}

Plan plan_of_sums(const Problem& problem, const Arch& arch, const SumPlan& sums) {
  const SumGeometry g = sum_geometry(problem, sums.tiling);
  Plan plan = plan_of(sums, problem, arch, problem.channels * g.tap_tiles);
  plan.threads = 32 * g.warps();
  return plan;
}

Answer plan_launch(const Kernel& kernel, const Problem& problem, const Arch& arch) {
  if (auto reason = refuse(problem, arch)) return *std::move(reason);
  Plan plan;
  if (problem.pass == Pass::backward_weight) {
    plan = plan_of_sums(problem, arch, plan_sums(problem, arch));
    plan.kernel = &kernel;
  } else {
    const Candidate best = search(problem, arch);
    plan = plan_of(kernel, problem, arch, best, geometry(problem, best.tiling));
    plan.estimate_us *= kChosen;
  }
  if (plan.estimate_us < 0) return "its planes do not fit the shared memory of the device";
  leave_small_filters(plan, problem);
  return plan;
}

}  // namespace

const FamilyPlanner kColumnsPlanner{plan_launch, spreads_nonfinite};

}  // namespace dwconv
