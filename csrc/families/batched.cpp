#include "batched.h"

#include <cmath>
#include <optional>

#include "batched_wgrad.h"
#include "family.h"
#include "large_filters.h"

namespace dwconv {

namespace batched {

Geometry geometry(const Problem& problem, const Tiling& tiling) {
  Geometry g;
  g.h = window_of(problem, problem.h);
  g.w = window_of(problem, problem.w);
  g.source_plane = g.h.source * g.w.source;
  g.result_plane = g.h.result * g.w.result;
  g.channels = tiling.planes;
  g.groups = static_cast<int>((problem.channels + g.channels - 1) / g.channels);
  g.images = tiling.images;
  g.image_blocks = static_cast<int>((problem.batch + g.images - 1) / g.images);
  g.units = static_cast<std::int64_t>(g.groups) * g.image_blocks;
  g.row_groups = ceil_div(g.h.result, kRows);
  g.columns = tiling.columns;
  g.tiles = ceil_div(g.w.result, g.columns);
  g.quads = ceil_div(g.w.source, kQuad);

  g.quad_pitch = g.images + 1;
  g.result_pitch = g.channels * g.result_plane | 1;
  const std::int64_t source = std::int64_t{16} * g.lines() * g.quads * g.quad_pitch;
  const std::int64_t result = std::int64_t{4} * g.images * g.result_pitch;
  g.segment = (g.quads - 1) * kQuad + kWindow;
  if (g.columns % kQuad == 0) {
    g.segment += (g.tiles - 1) * g.columns;
  } else {
    g.segments = g.tiles;
  }
  const std::int64_t taps = std::int64_t{4} * g.channels * g.h.kernel * g.tap_pitch();
  constexpr std::int64_t kTooMuch = 1 << 22;
  const std::int64_t taps_at = std::min((std::max(source, result) + 15) / 16 * 16, kTooMuch);
  g.taps_at = static_cast<int>(taps_at);
  g.shared_bytes = static_cast<int>(std::min(taps_at + taps, kTooMuch));
  return g;
}

}  // namespace batched

namespace {

using namespace batched;

// What an H100 gets through, for the choice among tilings and among families: of 91 passes the
// choice takes 1.6 % longer than the best family on average.
constexpr double kLaunchUs = 4;
constexpr double kBytesPerUs = 2.3e6;    // a large copy moves 3.0e6
constexpr double kCyclesPerUs = 1.05e3;  // of a multiprocessor
constexpr double kStepCycles = 14;       // of a warp, beside the products of a quad with results
constexpr double kLoadCycles = 8;        // of a warp, for its elements
constexpr double kUnitCycles = 2500;     // of a block's warps together, beside these
constexpr double kBlockCycles = 6000;    // of a block, until its images are there

// Pairs of an element and a result that a tap can be between, of all of an axis, in units of so
// many of either.
double pairs_along(const Window& axis, int elements, int results) {
  double pairs = 0;
  for (int result = 0; result < axis.result; result += results) {
    const int first = std::max(result - axis.pad, 0);
    const int last = std::min(result + results - 1 - axis.pad + axis.reach(1) - 1, axis.source - 1);
    if (first <= last) pairs += last / elements - first / elements + 1;
  }
  return pairs;
}

double estimate(const Problem& problem, const Arch& arch, const Geometry& g, int resident) {
  const int lane_images = g.images / kLanes;
  const double quads = pairs_along(g.w, kQuad, g.columns);
  const double rows = pairs_along(g.h, 1, 1) / g.h.dilation;
  const double products = kQuad * g.columns * lane_images;
  const double unit =
      g.channels * (rows * quads * (products + 3) +
                    pairs_along(g.h, 1, kRows) * quads / g.h.dilation * kStepCycles) +
      kLoadCycles * g.channels * (g.source_plane + g.result_plane) * lane_images + kUnitCycles;
  const double each = static_cast<double>(g.units) / arch.multiprocessors;
  const double alone = unit / std::min(4, g.warps()) + kBlockCycles;
  const double turns = std::ceil(each / resident);
  const double compute = std::max(std::ceil(each) * unit / 4, turns * alone) / kCyclesPerUs;
  const double bytes = 4.0 * static_cast<double>(problem.input_numel() + problem.output_numel());
  const double memory = bytes / (kBytesPerUs * arch.multiprocessors / 132);
  return kLaunchUs + std::max(compute, memory) + 0.3 * std::min(compute, memory);
}

struct Best {
  double us = -1;
  Tiling tiling;
};

Best search(const Problem& problem, const Arch& arch) {
  Best best;
  for (const int columns : kTileColumns) {
    for (const int lane_images : kLaneImages) {
      Tiling tiling{.images = kLanes * lane_images,
                    .rows = 1,
                    .stages = 1,
                    .tile_rows = kRows,
                    .columns = columns,
                    .places = 0};
      for (; tiling.planes <= problem.channels; ++tiling.planes) {
        const Geometry g = geometry(problem, tiling);
        if (g.warps() > kMaxWarps || g.shared_bytes > shared_per_block(arch)) break;
        tiling.threads = kLanes * g.warps();
        const int resident = std::min(kMaxWarps / g.warps(), blocks_that_fit(arch, g.shared_bytes));
        const double us = estimate(problem, arch, g, resident);
        if (best.us < 0 || us < best.us) best = {us, tiling};
      }
    }
  }
  return best;
}

std::optional<std::string> refuse(const Problem& problem) {
  const Axis &h = problem.h, &w = problem.w;
  if (problem.multiplier != 1) return "it takes one filter per channel";
  if (h.stride != 1 || w.stride != 1) return "it takes stride 1";
  constexpr std::int64_t kMaxSide = 1 << 10;
  if (std::max({h.input, w.input, h.output(), w.output(), h.kernel, w.kernel, h.pad_before,
                w.pad_before, h.dilation, w.dilation}) > kMaxSide ||
      problem.batch >= std::int64_t{1} << 31 || problem.channels >= std::int64_t{1} << 31) {
    return "images, filters, batch or channels are too large for it";
  }
  if (problem.pass != Pass::backward_weight &&
      geometry(problem, {.images = kLanes, .columns = kColumns}).warps() > kMaxWarps) {
    return "it takes images that 16 warps have, 4 x 8 results each";
  }
  return std::nullopt;
}

Plan plan_of_sums(const Problem& problem, const Arch& arch) {
  const SumPlan sums = plan_sums(problem, arch);
  return plan_of(sums, problem, arch, sum_geometry(problem, sums.tiling).groups);
}

Plan plan_of_convolution(const Problem& problem, const Arch& arch) {
  const Best best = search(problem, arch);
  Plan plan;
  plan.estimate_us = best.us;
  if (best.us < 0) return plan;
  plan.blocks = geometry(problem, best.tiling).units;
  plan.tiling = best.tiling;
  return plan;
}

Answer plan_launch(const Kernel& kernel, const Problem& problem, const Arch& arch) {
  if (auto reason = refuse(problem)) return *std::move(reason);
  Plan plan = problem.pass == Pass::backward_weight ? plan_of_sums(problem, arch)
                                                    : plan_of_convolution(problem, arch);
  if (plan.estimate_us < 0) return "its images do not fit the shared memory of the device";
  plan.kernel = &kernel;
  plan.threads = plan.tiling.threads;
  if (plan.blocks >= std::int64_t{1} << 31) return "it counts its blocks in 32 bits";
  return plan;
}

// Zeros beside a filter's taps meet elements of the image, unless it reaches all of them; those
// beside an image meet the output gradient.
bool spreads_nonfinite(const Problem& problem) {
  return problem.pass == Pass::backward_weight || problem.h.dilation > 1 ||
         problem.w.dilation > 1 || !reaches_all(problem);
}

}  // namespace

const FamilyPlanner kBatchedPlanner{plan_launch, spreads_nonfinite};

}  // namespace dwconv
