// What families have in common whose units are some channels of 16 images, as many as a product of
// the tensor cores has rows, and whose blocks have some warps for each of the channels.
#pragma once

#include "unit.h"

namespace dwconv {

inline constexpr int kBlockImages = 16;

// What a run of 16-bit elements takes in shared memory, in bytes: an odd multiple of 16, so that an
// element that lanes read of several images is in different banks.
constexpr int odd_run_bytes(std::int64_t elements) {
  const int bytes = run_bytes(elements, 2);
  return bytes / 16 % 2 == 0 ? bytes + 16 : bytes;
}

// All tilings whose blocks fit the device: with channels in groups as equal as can be, of as many
// as there are warps for, of half as many and so on. `consider(geometry, tiling, resident)` has the
// blocks that run on a multiprocessor at a time.
template <typename GeometryOf, typename Consider>
void for_each_tiling(const Problem& problem, const Arch& arch, const GeometryOf& geometry_of,
                     const Consider& consider) {
  const auto any = geometry_of(problem, Tiling{});
  const int jobs = any.jobs, warps = any.shape.warps();
  int before = 0;
  for (int most = std::max(warps / jobs, 1); most >= 1; most /= 2) {
    const std::int64_t groups = (problem.channels + most - 1) / most;
    const int planes = static_cast<int>((problem.channels + groups - 1) / groups);
    if (planes == before) continue;
    before = planes;
    for (const int stages : {4, 3, 2}) {
      const Tiling tiling{.planes = planes,
                          .images = kBlockImages,
                          .rows = 1,
                          .stages = stages,
                          .threads = 32 * planes * jobs,
                          .places = 0};
      const auto g = geometry_of(problem, tiling);
      if (g.warps() > warps || g.shared_bytes > shared_per_block(arch)) continue;
      consider(g, tiling, std::min(warps / g.warps(), blocks_that_fit(arch, g.shared_bytes)));
    }
  }
}

}  // namespace dwconv
