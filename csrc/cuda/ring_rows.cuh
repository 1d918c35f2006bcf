// What the kernels of the ring family share: where a thread works, and which filters there are.
#pragma once

#include <iterator>
#include <utility>

#include "../families/ring.h"
#include "channels.cuh"
#include "rows.cuh"

namespace dwconv::ring {

using rows::Grid;
using rows::Inside;
using rows::kBoxAlignment;
using rows::Unit;

// Where a thread works: its columns and channels, of one of a unit's images.
struct Place {
  int vector, strip, image;

  __device__ explicit Place(const Grid& grid) {
    image = static_cast<int>(threadIdx.x);
    vector = grid.vectors.short_remainder(image);
    strip = grid.strips.short_remainder(image);
  }
};

// `launch.template operator()<kernel_h, kernel_w, lanes>()` for those that come at run time.
template <typename Launch>
void for_filter(const Filter& filter, int lanes, const Launch& launch) {
  [&]<int... i>(std::integer_sequence<int, i...>) {
    const auto consider = [&]<int h, int w>() {
      if (filter != Filter{h, w}) return;
      if constexpr (has_many_lanes({h, w})) {
        if (lanes > kLanes) return launch.template operator()<h, w, 2 * kLanes>();
      }
      launch.template operator()<h, w, kLanes>();
    };
    (consider.template operator()<kFilters[i].h, kFilters[i].w>(), ...);
  }(std::make_integer_sequence<int, std::size(kFilters)>{});
}

}  // namespace dwconv::ring
