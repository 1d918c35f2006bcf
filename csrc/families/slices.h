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
