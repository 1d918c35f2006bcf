#include "toeplitz.h"

#include <bit>
#include <cmath>
#include <optional>

#include "family.h"

namespace dwconv {
namespace {

using namespace toeplitz;

// What an H100 gets through, for the choice among tilings and among families. Not yet fitted: the
// counts of instructions are those of the compiled loops, rounded.
constexpr double kBytesPerUs = 2.9e6;  // a large copy moves 3.0e6
constexpr double kLaunchUs = 4;        // an empty kernel takes 3.5
constexpr double kSumUs = 2;           // the second kernel of a weight gradient
constexpr double kCyclesPerUs = 1.7e3;
constexpr double kIssue = 2.4;               // instructions of a multiprocessor in a cycle, of 4
constexpr double kBytesInFlight = 32 << 10;  // of a multiprocessor, to keep the memory busy
constexpr double kBusyWarps = 16;            // of a multiprocessor, to keep its issue slots busy
constexpr double kSector = 32;               // what memory moves at a time
constexpr double kRowCycles = 60;            // from one row of a walk to the next, for one warp
constexpr double kUnitCycles = 1200;         // barriers, addresses, the first and last copies
constexpr double kUnitInstructions = 200;    // of a warp

// Instructions of a warp that bring an image of one tensor in.
double instructions_of(const Feed& feed, int planes) {
  const Stage& s = feed.stage;
  const double pieces = planes * feed.pieces / 32.0;
  return feed.raw == 0 ? 12 * pieces : 12 * pieces + 12 * feed.raw / (32.0 * kVector);
}

double bytes_of(const Feed& feed, int planes) {
  return 2.0 * planes * feed.stage.rows * feed.stage.width;
}

double estimate(const Problem& problem, const Arch& arch, const Geometry& g, const Tiling& tiling,
                int resident) {
  const bool weight = problem.pass == Pass::backward_weight;
  const auto units = static_cast<double>(g.units);
  const double blocks = std::min(units, static_cast<double>(resident) * arch.multiprocessors);
  const double most = std::ceil(units / blocks);  // units of a block
  const double resident_now = blocks / arch.multiprocessors;

  // Compute: instructions of all warps of a multiprocessor, and the time one warp takes at least.
  const int tasks = g.planes * g.batches;
  const double rows = g.walk_rows + g.reach_h - 1;
  const double results = static_cast<double>(g.planes) * g.rows * g.w.result;
  const double per_task = rows * (g.reach_h + 7) + (weight ? 60 : 14 * g.walk_rows + 80);
  const double per_image =
      instructions_of(g.source, g.planes) +
      (weight ? instructions_of(g.grad, g.planes) : results * 12 / (32 * kVector) + 20);
  const double instructions = tasks * per_task + g.images * per_image + kWarps * kUnitInstructions;
  const double busy = std::min(1.0, resident_now * kWarps / kBusyWarps);
  const double issue = instructions * units / (arch.multiprocessors * kIssue * busy);
  const double rounds = ceil_div(tasks, kWarps);
  const double serial =
      (rounds * rows * kRowCycles + 2 * g.images * per_image / kWarps + kUnitCycles) * most;
  const double compute = std::max(issue, serial) / kCyclesPerUs;

  // Bytes. Of rows that neighbouring bands read twice the L2 has half.
  const double loaded = bytes_of(g.source, g.planes) + (weight ? bytes_of(g.grad, g.planes) : 0);
  const double reread =
      std::max(0.0, static_cast<double>(g.bands) * g.source.stage.rows / g.h.source - 1);
  const double run = 2.0 * g.planes * std::min(g.source.stage.rows, g.h.source) * g.w.source;
  const double sectors = 1 + 0.25 * kSector / run;
  const double moved = 2.0 * static_cast<double>(problem.input_numel() + problem.output_numel());
  const double in_flight = resident_now * (tiling.stages - 1) * g.images * loaded;
  const double starved = std::max(1.0, kBytesInFlight / in_flight);
  const double balance = most / (units / blocks);
  const double memory = moved * (1 + 0.25 * reread) * sectors * starved * (0.5 + 0.5 * balance) /
                        (kBytesPerUs * arch.multiprocessors / 132);
  return kLaunchUs + (weight ? kSumUs : 0) + std::max(memory, compute) +
         0.25 * std::min(memory, compute);
}

// The tables of pieces hold 16-bit places.
bool tables_hold(const Geometry& g) { return std::max(g.source.image, g.grad.image) <= 1 << 16; }

struct Candidate {
  Tiling tiling;
  int resident = 0;
  double us = 0;
};

// The tiling with the lowest estimate; resident = 0 where none fits.
Candidate search(const Problem& problem, const Arch& arch) {
  const bool weight = problem.pass == Pass::backward_weight;
  Candidate best;
  const auto consider = [&](const Tiling& tiling) {
    const Geometry g = geometry(problem, tiling);
    if (g.shared_bytes > shared_per_block(arch) || !tables_hold(g)) return false;
    const int resident =
        std::min(resident_blocks(g.reach_h), blocks_that_fit(arch, g.shared_bytes));
    const double us = estimate(problem, arch, g, tiling, resident);
    if (best.resident == 0 || us < best.us) best = {tiling, resident, us};
    return true;
  };
  const auto up_to = [](int limit, std::int64_t count) {
    const auto most = static_cast<unsigned>(std::clamp<std::int64_t>(count, 1, limit));
    return static_cast<int>(std::bit_ceil(most));
  };
  // A warp keeps its channel: with more planes it builds a filter's operand anew for each unit,
  // which took 57 us instead of 41 (N128 C192 28x28 k7 float16 forward).
  const int most_planes = up_to(kWarps, problem.channels);
  const int most_images = up_to(kPositions, problem.batch);
  const int results = geometry(problem, {}).h.result;
  for (const int stages : {2, 3, 4}) {
    for (int planes = 1; planes <= most_planes; planes *= 2)
      for (int images = 1; images <= most_images; images *= 2)
        if (!consider({planes, images, results, stages})) break;
    for (int bands = 2; bands < results; ++bands) {
      const int rows = ceil_div(results, bands);
      if (ceil_div(results, rows) == bands) consider({1, 1, rows, stages});
    }
  }
  return best;
}

std::optional<std::string> refuse(const Problem& problem, const Arch& arch) {
  const Axis &h = problem.h, &w = problem.w;
  if (arch.compute_capability < 80) return "it needs the tensor cores of sm_80 or newer";
  if (problem.multiplier != 1) return "it takes one filter per channel";
  if (h.stride != 1 || w.stride != 1) return "it takes stride 1";
  if (h.extent() > kMaxReachH || w.extent() > kMaxReachW) {
    return "it takes filters that span up to " + std::to_string(kMaxReachH) + " x " +
           std::to_string(kMaxReachW) + " elements, dilation included";
  }
  if (padding_holds_results(problem)) {
    return "some results lie wholly in the padding";
  }
  // Positions within a unit are counted in 32 bits.
  constexpr std::int64_t kMaxSide = 1 << 15;
  if (std::max({h.input, w.input, h.output(), w.output()}) > kMaxSide ||
      problem.batch >= std::int64_t{1} << 30 || problem.channels >= std::int64_t{1} << 30) {
    return "images, batch or channels are too large for it";
  }
  return std::nullopt;
}

// The zeros of a Toeplitz matrix meet the columns beside those that a result reads.
bool spreads_nonfinite(const Problem&) { return true; }

Answer plan_launch(const Kernel& kernel, const Problem& problem, const Arch& arch) {
  if (auto reason = refuse(problem, arch)) return *std::move(reason);
  const Candidate best = search(problem, arch);
  if (best.resident == 0) return "its rows do not fit the shared memory of the device";
  const Geometry g = geometry(problem, best.tiling);
  Plan plan;
  plan.kernel = &kernel;
  plan.threads = kThreads;
  plan.tiling = best.tiling;
  plan.blocks = std::min<std::int64_t>(
      g.units, static_cast<std::int64_t>(best.resident) * arch.multiprocessors);
  plan.estimate_us = best.us;
  if (problem.pass == Pass::backward_weight) {
    plan.slices = plan.blocks;
    plan.workspace_bytes = partials_of(problem, g, plan.blocks).bytes();
  }
  return plan;
}

}  // namespace

const FamilyPlanner kToeplitzPlanner{plan_launch, spreads_nonfinite};

}  // namespace dwconv
