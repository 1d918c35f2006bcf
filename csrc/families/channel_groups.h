// What families have in common whose blocks each keep one group of channels, all of them through.
#pragma once

#include "../problem.h"
#include "partials.h"

namespace dwconv {

// Of a weight gradient: a block has one share of the units of its group.
template <typename Geometry>
constexpr Partials partials_of(const Problem& problem, const Geometry& g, std::int64_t blocks) {
  return {.units = blocks,
          .units_per_group = blocks / g.groups,
          .blocks = blocks,
          .channels = problem.channels,
          .planes = g.width,
          .taps = static_cast<int>(problem.taps()),
          .bias = problem.bias,
          .segments = 1};
}

}  // namespace dwconv
