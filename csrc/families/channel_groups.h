// What families have in common whose blocks each keep one group of channels, all of them through.
#pragma once

#include "../problem.h"
#include "partials.h"

namespace dwconv {

// Products that a thread adds up in float32 at most: rounding them leaves a random error of about
// 2^-24 * sqrt(products / 6) of the sum's size, 2.7e-6 for so many (of 10,900, N64 C128 256x512 k3,
// it was 1.8e-6: benchmarks/h100_nhwc.json). Larger problems have more blocks than run at a time.
inline constexpr double kMostProducts = 12288;

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
