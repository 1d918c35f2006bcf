#include <cmath>
#include <optional>

#include "family.h"
#include "toeplitz_pixels.h"

namespace dwconv {
namespace {

using namespace toeplitz;

// What an H100 gets through, for the choice among tilings and among families: fitted together to
// some 20 tilings of each of 92 problems (float16, two thirds of them random). The choice is 1.6 %
// slower than the best of them on average.
constexpr double kBytesPerUs = 3.06e6;          // a large copy moves 3.0e6
constexpr double kCyclesPerUs = 1.75e3;         // of a multiprocessor
constexpr double kIssue = 4;                    // warp instructions a cycle
constexpr double kBusy = 0.502;                 // of its issue slots, at best
constexpr double kCyclesPerInstruction = 5.42;  // of one warp alone
constexpr double kBytesInFlight = 24 << 10;     // of a multiprocessor, to keep the memory busy
constexpr double kLaunchUs = 6;                 // an empty kernel takes 3.5
constexpr double kSumUs = 9;                    // the kernel that adds the partial sums
constexpr double kOnePlace = 1.12;              // the time of one place for results, against two
constexpr double kRuns = 1.093;                 // bytes of runs, against those of units in turn
constexpr double kTeams = 1.1;                  // teams are fewer blocks than fit
constexpr double kStridedUs = 1;                // of weight gradients with stride 2
constexpr double kFewRows = 1.2;                // of theirs, where filters have one or two rows
constexpr double kSector = 32;                  // bytes that memory moves at least
constexpr double kMultiplyCycles = 6.3;         // of a tensor core

constexpr double kStartCycles = 3000;     // of a block: the first loads, the filters
constexpr double kUnitCycles = 1080;      // barriers, the first and last copies
constexpr double kFiltersCycles = 594;    // of a block, for other filters
constexpr double kMatrixCycles = 88.6;    // of a warp, for each of a channel's matrices
constexpr double kUnitInstructions = 40;  // of a warp
constexpr double kTaskInstructions = 118;

// Instructions of a step of a walk beside its multiplications.
double step_instructions(const Problem& problem, const Geometry& g) {
  const Access& a = g.access;
  const int windows = a.windows() * a.source_rows();
  if (problem.pass == Pass::backward_weight) return 20 + 12 * windows;
  const double loads = (a.unit == 2 ? 8 : 12) * windows;
  const double stores = a.mode == Mode::phases ? 36 : g.w.result % 2 == 0 ? 6 : 10;
  return 10 + loads + stores;
}

double estimate(const Problem& problem, const Arch& arch, const Geometry& g, const Tiling& tiling,
                const Deal& deal) {
  const bool weight = problem.pass == Pass::backward_weight;
  const double units = std::max<double>(g.units, 1);
  const double blocks = std::max<double>(deal.blocks, 1);
  const double most = deal.longest;
  const double resident_now = std::ceil(blocks / arch.multiprocessors);
  const double source_rows = g.whole() ? g.h.source : std::min(g.h.source, g.h.reach(g.rows));

  // Compute: instructions of all warps of a multiprocessor, the multiplications of its tensor
  // cores, and the time that one warp takes at least.
  const int tasks = g.tasks();
  const double multiplications = g.access.kernel_h * g.access.parts;
  const double source_steps = source_rows / (g.access.source_rows() * g.row_classes);
  const double steps = std::min<double>(g.steps(), std::ceil(source_steps)) + 1;
  const double of_task = steps * (step_instructions(problem, g) + multiplications) +
                         8 * g.access.ring() + kTaskInstructions;
  const double runs = weight ? 2 * g.images : g.images;
  const double of_unit = tasks * of_task + kWarps * kUnitInstructions + 12 * runs;
  const int working = std::min(tasks, kWarps);
  const double busy = std::min(kBusy, resident_now * working / (kIssue * kCyclesPerInstruction));
  const double issue = of_unit * resident_now * most / (kIssue * busy);
  const double tensor = tasks * steps * multiplications * kMultiplyCycles * resident_now * most / 4;
  const double rounds = ceil_div(tasks, kWarps);
  const double filters = deal.one_group ? 0
                                        : kFiltersCycles + kMatrixCycles * multiplications *
                                                               ceil_div(g.channels, kWarps);
  const double serial = most * (kUnitCycles + filters +
                                kCyclesPerInstruction * (rounds * of_task + kUnitInstructions));
  const double compute = (kStartCycles + std::max({issue, tensor, serial})) / kCyclesPerUs;

  // Bytes. Of rows that neighbouring bands read twice the L2 has half. Runs begin and end within
  // sectors.
  const double source = 2.0 * g.channels * source_rows * g.w.source;
  const double loaded =
      g.images * (source + (weight ? 2.0 * g.channels * g.rows * g.w.result : 0.0));
  const double reread = std::max(0.0, g.bands * source_rows / g.h.source - 1);
  const double sectors = 1 + 0.5 * kSector / source;
  const double moved = 2.0 * static_cast<double>(problem.input_numel() + problem.output_numel());
  const double in_flight = resident_now * (tiling.stages - 1) * loaded;
  const double starved = std::max(1.0, kBytesInFlight / in_flight);
  const double balance = most / (units / blocks);
  const double memory = moved * (1 + 0.25 * reread) * sectors * starved * (0.5 + 0.5 * balance) *
                        (deal.in_turn || weight ? 1 : kRuns) /
                        (kBytesPerUs * arch.multiprocessors / 132);
  const double busiest = std::max(memory, compute) + 0.25 * std::min(memory, compute);
  const double us =
      kLaunchUs + (weight && !deal.whole_groups ? kSumUs : 0) +
      busiest * (tiling.places == 1 && !weight ? kOnePlace : 1) * (deal.team > 1 ? kTeams : 1);
  if (!weight || g.access.mode != Mode::strided) return us;
  return us * (g.access.kernel_h <= 2 ? kFewRows : 1) + kStridedUs;
}

// The tiling with the lowest estimate; us < 0 where none fits.
//
// Two stages and four warps are best nearly everywhere: with them alone the choice is 1.4 % slower
// than the best of all tilings on average, over 62 problems (float16, forward and weight gradient).
// With one or two warps and with three stages to choose from as well, it was 4 % slower.
Candidate search(const Problem& problem, const Arch& arch) {
  const bool weight = problem.pass == Pass::backward_weight;
  Candidate best;
  const auto consider = [&](int planes, int images, int rows, int places) {
    const Tiling tiling{.planes = planes,
                        .images = images,
                        .rows = rows,
                        .stages = 2,
                        .threads = kThreads,
                        .places = places};
    const Geometry g = geometry(problem, tiling);
    if (g.shared_bytes > shared_per_block(arch)) return false;
    const int resident =
        std::min(resident_blocks(g.access, weight), blocks_that_fit(arch, g.shared_bytes));
    consider_deals(best, problem, arch, g, tiling, resident,
                   [&](const Deal& dealt) { return estimate(problem, arch, g, tiling, dealt); });
    return true;
  };
  // A warp of a weight gradient keeps its channel.
  const auto most_planes = std::min<std::int64_t>(weight ? kWarps : 4 * kWarps, problem.channels);
  const Geometry one = geometry(problem, {});
  const int results = one.h.result;
  // Of the positions of a batch that is not full, the others' work is lost.
  const auto fills = [&one](int images) {
    const int positions = images * one.strips;
    return positions <= kPositions ||
           positions > 0.85 * kPositions * ceil_div(positions, kPositions);
  };
  for (const int places : {1, 2}) {
    if (weight && places == 2) continue;
    for (int planes = 1; planes <= most_planes; planes *= 2)
      for (const int images : {1, 2, 3, 4, 5, 8, 16, 32, 64}) {
        if (images > 1 && !fills(images)) continue;
        if (images > problem.batch || !consider(planes, images, results, places)) break;
      }
    for (int bands = 2; bands < results; ++bands) {
      const int rows = ceil_div(results, bands);
      if (ceil_div(results, rows) != bands) continue;
      for (const int images : {1, 2, 4})
        if (images > problem.batch || !consider(1, images, rows, places)) break;
    }
  }
  return best;
}

std::optional<std::string> refuse(const Problem& problem, const Arch& arch) {
  const Axis &h = problem.h, &w = problem.w;
  if (arch.compute_capability < 80) return "it needs the tensor cores of sm_80 or newer";
  if (problem.multiplier != 1) return "it takes one filter per channel";
  if (h.kernel > kMaxKernelH) {
    return "it takes kernels of up to " + std::to_string(kMaxKernelH) + " rows";
  }
  if (h.stride > 2) return "it takes stride 1 or 2 along the height";
  if (h.stride == 2 && h.dilation > 1) return "it takes no dilation with stride 2";
  const bool backward = problem.pass == Pass::backward_input;
  if (backward && h.stride != w.stride) return "it takes the same stride on both axes";
  if (backward && w.stride == 2 && w.dilation > 1) return "it takes no dilation with stride 2";
  if (padding_holds_results(problem)) {
    return "some results lie wholly in the padding";
  }
  if (problem.pass == Pass::backward_weight && problem.bias && h.dilation > h.input) {
    return "results that meet no row of the input count for the bias, and it passes over them";
  }
  // Positions within a unit are counted in 32 bits.
  constexpr std::int64_t kMaxSide = 1 << 15;
  if (std::max({h.input, w.input, h.output(), w.output(), h.dilation, w.extent()}) > kMaxSide ||
      problem.batch >= std::int64_t{1} << 30 || problem.channels >= std::int64_t{1} << 30) {
    return "images, batch or channels are too large for it";
  }
  const Geometry g = geometry(problem, {});
  const bool too_far = !g.holds_image && g.w.reach(g.columns) > g.access.windows() * kWindow;
  if (too_far || g.access.parts > kMaxParts) {
    return "neighbouring results reach over more than two windows of 16 columns";
  }
  const bool weight = problem.pass == Pass::backward_weight;
  if (problem.layout == Layout::nhwc && !takes_pixels(g.access, weight))
    return "of channels_last images it takes no filters with so few rows";
  return std::nullopt;
}

// The zeros of a Toeplitz matrix meet the columns beside those that a result reads.
bool spreads_nonfinite(const Problem&) { return true; }

Answer plan_launch(const Kernel& kernel, const Problem& problem, const Arch& arch) {
  if (auto reason = refuse(problem, arch)) return *std::move(reason);
  const Candidate best =
      problem.layout == Layout::nhwc ? search_pixels(problem, arch) : search(problem, arch);
  if (best.us < 0) return "its rows do not fit the shared memory of the device";
  return plan_of(kernel, problem, arch, best, geometry(problem, best.tiling));
}

}  // namespace

const FamilyPlanner kToeplitzPlanner{plan_launch, spreads_nonfinite};

}  // namespace dwconv
