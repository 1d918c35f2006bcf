// What families have in common whose weight gradients give a channel some blocks, for each tile of
// its filter, each of which has a share of the images.
#pragma once

#include "../plan.h"
#include "partials.h"

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

}  // namespace dwconv
