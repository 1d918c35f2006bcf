#include "plane.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <optional>

#include "family.h"

namespace dwconv {
namespace {

using namespace plane;

// What an H100 gets through, for the choice among tilings and among families: fitted together to
// some 30 tilings of each of 24 problems. The choice is 2 % slower than the best of them on
// average, 5 % for weight gradients.
constexpr double kBytesPerUs = 2.95e6;       // a large copy moves 3.0e6
constexpr double kRuns = 1.045;              // bytes of runs, against those of units in turn
constexpr double kLaunchUs = 3;              // an empty kernel takes 3.5
constexpr double kSumUs = 5.79;              // the kernel that adds the partial sums
constexpr double kIssuePerUs = 5.14e3;       // warp instructions of a multiprocessor
constexpr double kBytesInFlight = 59 << 10;  // of a multiprocessor, to keep the memory busy
constexpr double kWarps = 13.2;              // of a multiprocessor, to keep its issue slots busy
constexpr double kUnitInstructions = 84.6;   // of a warp: barriers, addresses, copies
constexpr double kFilterInstructions = 200;  // of a warp, for other filters
constexpr double kSumInstructions = 14.6;    // of a warp, for each sum that its lanes add
constexpr double kBlockUs = 0.659;           // the first filters, the first barriers
constexpr double kWeightUs = 2;              // of a weight gradient: its ends

// Instructions of a tile.
double tile_instructions(const Problem& problem, const Geometry& g) {
  const bool weight = problem.pass == Pass::backward_weight;
  const auto kernel = static_cast<double>(problem.w.kernel);
  const int pad = static_cast<int>(problem.w.kernel) / 2;
  const double tile = g.access.tile, halves = g.access.halves;
  const double convert = problem.dtype == DType::float32 ? 0 : 1;
  const double rows = g.access.exact ? tile + (halves > 1 ? pad : 0) : g.source_rows(pad);
  const double columns = tile + (halves > 1 ? pad : 0);
  // Of the taps of a row or column, those that lie in the padding on one side or on both.
  const double outside = pad * (pad + 1) / 2 * (halves > 1 ? 1 : 2);
  const double taps_h = std::min(tile, rows) * kernel - pad * (pad + 1) / 2;
  const double taps =
      (g.access.exact ? tile * kernel - outside : taps_h) * (tile * kernel - outside);
  const double test = g.access.exact ? 0 : halves > 1 ? 0.3 : 1.5;
  const double load = 1 + convert + (halves > 1 ? 1 : 0);
  const double own = tile * std::min(tile, rows) * (load + (g.access.exact ? 0 : 1));
  return taps + rows * columns * (load + test) + own + (weight ? 0 : tile * tile);
}

double estimate(const Problem& problem, const Arch& arch, const Geometry& g, const Tiling& tiling,
                const Deal& deal) {
  const bool weight = problem.pass == Pass::backward_weight;
  const auto bytes = static_cast<double>(size_of(problem.dtype));
  const double units = std::max<double>(g.units, 1);
  const double blocks = std::max<double>(deal.blocks, 1);
  const auto runs = static_cast<double>(deal.longest);
  const double warps = tiling.threads / 32;
  const double on_one = std::ceil(blocks / arch.multiprocessors);

  const double per_unit = warps * (tile_instructions(problem, g) + kUnitInstructions);
  const double busy = std::min(1.0, on_one * warps / kWarps);
  const double filters = deal.one_group ? 0 : kFilterInstructions * warps;
  const double unit_us = (per_unit + filters) * on_one / (kIssuePerUs * busy);
  double compute = unit_us * runs;
  if (weight) {
    const double groups = std::ceil(runs / g.image_blocks);
    compute += groups * on_one * warps * static_cast<double>(problem.taps()) * kSumInstructions /
               (kIssuePerUs * busy);
  }

  const double loaded =
      static_cast<double>(g.channels) * g.images * g.plane * bytes * (weight ? 2 : 1);
  const double moved = static_cast<double>(problem.input_numel() + problem.output_numel()) * bytes;
  const double in_flight = on_one * (tiling.stages - 1) * loaded;
  const double rate = kBytesPerUs * arch.multiprocessors / 132;
  const double memory = moved / rate * std::max(1.0, kBytesInFlight / in_flight) * runs /
                        (units / blocks) * (deal.in_turn || weight ? 1 : kRuns);
  // At first nothing can be computed, and at last nothing is left to load.
  const double ends = std::min(blocks, units) * loaded / rate + unit_us;
  double us = kLaunchUs + kBlockUs + (weight ? kWeightUs : 0) + std::max(memory, compute) +
              0.1 * std::min(memory, compute) + 0.5 * ends;
  // Partial sums are written, and read back from the L2.
  if (weight && !deal.whole_groups) {
    const Partials partials = partials_of(problem, g, deal.blocks, false);
    us += kSumUs + static_cast<double>(partials.bytes()) / rate;
  }
  return us;
}

// The tiling with the lowest estimate; us < 0 where none fits.
Candidate search(const Problem& problem, const Arch& arch) {
  const bool weight = problem.pass == Pass::backward_weight;
  const auto kernel = static_cast<int>(problem.w.kernel);
  Candidate best;
  const auto consider = [&](const Tiling& tiling) {
    const Geometry g = geometry(problem, tiling);
    if (g.lanes > tiling.threads || g.shared_bytes > shared_per_block(arch)) return;
    const int blocks = resident_blocks(g.access, kernel, weight);
    const int resident =
        std::min({weight ? blocks * kMaxThreads / tiling.threads : blocks,
                  most_blocks(arch.compute_capability), blocks_that_fit(arch, g.shared_bytes)});
    consider_deals(best, problem, arch, g, tiling, resident,
                   [&](const Deal& dealt) { return estimate(problem, arch, g, tiling, dealt); });
  };
  // Channels in groups as equal as can be; of few channels, several images.
  const auto consider_planes = [&](Tiling tiling, int most) {
    const std::int64_t groups = (problem.channels + most - 1) / most;
    tiling.planes = static_cast<int>((problem.channels + groups - 1) / groups);
    const bool several = weight || groups == 1;
    const int tiles = geometry(problem, tiling).tiles;
    const int images = several ? std::max(tiling.threads / (tiling.planes * tiles), 1) : 1;
    tiling.images = static_cast<int>(std::clamp<std::int64_t>(problem.batch, 1, images));
    consider(tiling);
  };
  const int exact = exact_tile(problem);
  for (const int tile : kTiles) {
    if (exact != 0 ? tile != exact : std::max(problem.h.input, problem.w.input) > 2 * tile)
      continue;
    for (const int stages : {2, 3}) {
      for (const int threads : {kLanes, 64, 96, kMaxThreads}) {
        if (!weight && threads != kLanes) continue;
        Tiling tiling{.rows = static_cast<int>(problem.h.input),
                      .stages = stages,
                      .threads = threads,
                      .tile_rows = tile};
        const int most = kLanes / geometry(problem, tiling).tiles;
        consider_planes(tiling, most);
        consider_planes(tiling, std::max(most / 2, 1));
      }
    }
  }
  return best;
}

std::optional<std::string> refuse(const Problem& problem) {
  const Axis &h = problem.h, &w = problem.w;
  if (problem.multiplier != 1) return "it takes one filter per channel";
  if (h.kernel != w.kernel ||
      std::find(std::begin(kKernels), std::end(kKernels), w.kernel) == std::end(kKernels)) {
    return "it takes kernels of 3 x 3, 5 x 5 and 7 x 7";
  }
  if (h.stride != 1 || w.stride != 1) return "it takes stride 1";
  if (h.dilation != 1 || w.dilation != 1) return "it takes no dilation";
  const auto pad = w.kernel / 2;
  for (const Axis& axis : {h, w}) {
    if (axis.pad_before != pad || axis.pad_after != pad) {
      return "it takes padding that keeps the size of the image, the same on both sides";
    }
  }
  if (std::max(h.input, w.input) > kMaxSide) {
    return "it takes images of up to " + std::to_string(kMaxSide) + " x " +
           std::to_string(kMaxSide);
  }
  if (problem.batch >= std::int64_t{1} << 31 || problem.channels >= std::int64_t{1} << 31) {
    return "batch or channels are too large for it";
  }
  return std::nullopt;
}

// Zeros beyond an image meet filters, never an image; but an output gradient that a tile lacks is a
// zero that meets one.
bool spreads_nonfinite(const Problem& problem) {
  return problem.pass == Pass::backward_weight && exact_tile(problem) == 0;
}

Answer plan_launch(const Kernel& kernel, const Problem& problem, const Arch& arch) {
  if (auto reason = refuse(problem)) return *std::move(reason);
  const Candidate best = search(problem, arch);
  if (best.us < 0) return "its units do not fit the shared memory of the device";
  return plan_of(kernel, problem, arch, best, geometry(problem, best.tiling));
}

}  // namespace

const FamilyPlanner kPlanePlanner{plan_launch, spreads_nonfinite};

}  // namespace dwconv
