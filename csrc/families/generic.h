// The generic family: takes every problem. Shared by its planner and its kernels.
#pragma once

#include <bit>

#include "../problem.h"

namespace dwconv::generic {

inline constexpr int kWarp = 32;

// forward and backward_input: one thread per result.
inline constexpr int kGatherThreads = 256;

// backward_weight: a warp sums one tap over a slice of the output rows; a block holds as many warps
// as there are taps, up to this many, and each walks several taps beyond that.
inline constexpr int kMaxTapWarps = 16;

// How the lanes of such a warp are dealt out: filters x columns x images, all powers of two. Lanes
// that are neighbours in memory come first, so that loads coalesce.
struct Lanes {
  int filters;
  int columns;
  constexpr int images() const { return kWarp / (filters * columns); }
};

constexpr Lanes lanes_of(const Problem& problem) {
  const auto up_to = [](int limit, std::int64_t wanted) {
    return wanted >= limit ? limit : static_cast<int>(std::bit_ceil(static_cast<unsigned>(wanted)));
  };
  const int filters = problem.layout == Layout::nhwc ? up_to(kWarp, problem.filters()) : 1;
  return {filters, up_to(kWarp / filters, problem.w.output())};
}

// The partial sums of the slices are added by blocks of kWarp results x this many lanes.
inline constexpr int kReduceLanes = 16;

}  // namespace dwconv::generic
