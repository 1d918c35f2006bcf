// What families have in common whose weight gradients give a channel some blocks, for each tile of
// its filter, each of which has a share of the images.
#pragma once

#include "unit.h"

namespace dwconv {

// Where partial sums lie: a channel has `slices` blocks for each tile of its filter.
constexpr Partials partials_of(const Problem& problem, std::int64_t slices) {
  return {.units = problem.channels * slices,
          .units_per_group = slices,
          .blocks = problem.channels * slices,
          .channels = problem.channels,
          .planes = 1,
          .taps = static_cast<int>(problem.taps()),
          .bias = problem.bias,
          .whole = slices == 1,
          .segments = 1};
}

// The best launch; us < 0 where none fits.
struct SumPlan {
  double us = -1;
  Tiling tiling;
  std::int64_t slices = 1;
};

// What units may be: up to so many images whole, or bands of so many rows of one, as few as fit.
struct UnitChoice {
  int most_images = 1;
  int rows = 1;
  int threads = 32;  // of a block
  int resident = 1;  // blocks that a multiprocessor has room for
  int stages = 2;
  int most_bands = 64;
  bool served = false;  // by the copy engine
};

// The launch with the lowest estimate. `fits(geometry)` tells whether a block has room for its
// units, `estimate(geometry, slices)` what they take.
template <typename GeometryOf, typename Fits, typename Estimate>
SumPlan plan_sums(const Problem& problem, const Arch& arch, const UnitChoice& choice,
                  const GeometryOf& geometry_of, const Fits& fits, const Estimate& estimate) {
  SumPlan best;
  const std::int64_t enough = std::int64_t{4} * choice.resident * arch.multiprocessors;  // blocks
  for (int images = choice.most_images; images >= 1; images /= 2) {
    if (images > 1 && images / 2 >= problem.batch) continue;
    for (int bands = 1; bands <= (images > 1 ? 1 : choice.most_bands); bands *= 2) {
      const Tiling tiling{.images = images,
                          .rows = ceil_div(choice.rows, bands),
                          .stages = choice.stages,
                          .threads = choice.threads,
                          .places = 0,
                          .served = choice.served};
      const auto g = geometry_of(problem, tiling);
      if (!fits(g)) continue;
      for (std::int64_t slices = 1; slices <= std::max<std::int64_t>(g.units, 1); slices *= 2) {
        const double us = estimate(g, slices);
        if (best.us < 0 || us < best.us) best = {us, tiling, slices};
        if (problem.channels * g.tiles() * slices >= enough) break;
      }
      break;
    }
  }
  return best;
}

// The same with what follows from it; `blocks` are those of a slice of all channels.
inline Plan plan_of(const SumPlan& sums, const Problem& problem, const Arch& arch,
                    std::int64_t blocks) {
  Plan plan;
  plan.estimate_us = sums.us;
  plan.blocks = blocks * sums.slices;
  plan.slices = sums.slices;
  plan.sums_overlap = is_sm_90(arch);
  plan.workspace_bytes = partials_of(problem, sums.slices).bytes();
  plan.tiling = sums.tiling;
  return plan;
}

}  // namespace dwconv
