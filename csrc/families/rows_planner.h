// What planners of families with such rows share: why they do not take a problem, tiles to
// choose from and how those are dealt out, the time that memory takes, and the plan.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>

#include "family.h"
#include "rows.h"

namespace dwconv::rows {

// The best tiles so far; none while us < 0.
struct Found {
  double us = -1;
  Tiles tiles{};
  std::int64_t slices = 0;
};

// Blocks that take the units of a group of channels in turn, `resident` of which run at a time on a
// multiprocessor. Of a weight gradient, none adds up more than `most_added` elements of a thread or
// warp.
struct Turns {
  std::int64_t slices;  // blocks of a group
  double blocks, waves;
  double rounds;         // units of a block
  double on_one, warps;  // blocks and warps of a multiprocessor

  Turns(const Problem& problem, const Arch& arch, const Geometry& g, int resident,
        double most_added) {
    const bool weight = problem.pass == Pass::backward_weight;
    const std::int64_t all = static_cast<std::int64_t>(resident) * arch.multiprocessors;
    const double added = static_cast<double>(g.units) * g.band * g.shape.columns;
    const auto exact = weight ? static_cast<std::int64_t>(std::ceil(added / most_added)) : 1;
    slices = std::clamp<std::int64_t>(std::max(all / g.groups, exact), 1,
                                      std::max<std::int64_t>(g.units, 1));
    blocks = static_cast<double>(slices * g.groups);
    waves = std::ceil(blocks / static_cast<double>(all));
    rounds = std::ceil(static_cast<double>(g.units) / static_cast<double>(slices));
    on_one = std::min<double>(resident, std::ceil(blocks / arch.multiprocessors));
    warps = on_one * g.threads() / 32;
  }
};

// Calls consider(tiles) for all that divide the problem about evenly, `one` being the geometry with
// the smallest. It returns whether they fit: more images do not either.
template <typename Consider>
void for_tiles(const Problem& problem, const Geometry& one, int most_width,
               const Consider& consider) {
  constexpr int kMostImages = 16, kMostBands = 16, kMoreGroups = 4;
  constexpr int kSector = 32;  // bytes that memory moves at least
  const int unit = kSector / static_cast<int>(size_of(problem.dtype));
  const int results = ceil_div(one.h.result, one.row_classes);
  const int all_strips = ceil_div(ceil_div(one.w.result, one.column_classes), one.shape.columns);
  const std::int64_t least_groups = (problem.channels + most_width - 1) / most_width;
  for (int more = 0; more <= kMoreGroups; ++more) {
    const std::int64_t groups = least_groups + more;
    const auto even = static_cast<int>((problem.channels + groups - 1) / groups);
    const int width = std::min(round_up(even, unit), most_width);
    for (int tiles = 1; tiles <= all_strips; ++tiles) {
      const int strips = ceil_div(all_strips, tiles);
      if (ceil_div(all_strips, strips) != tiles) continue;
      for (int images = 1; images <= std::min<std::int64_t>(problem.batch, kMostImages); ++images) {
        if (!consider(Tiles{width, images, strips, results})) break;
        for (int bands = 2; bands <= kMostBands; ++bands) {
          const int rows = ceil_div(results, bands);
          if (ceil_div(results, rows) == bands) consider(Tiles{width, images, strips, rows});
        }
      }
    }
  }
}

// The tiles with the lowest estimate; us < 0 where none fits. `geometry(tiles)`; blocks of them
// that a multiprocessor's registers allow, `allowed(g)`, 0 where there is no kernel for them; and
// what they are expected to take, `estimate(tiles, g, resident)`.
template <typename GeometryOf, typename Allowed, typename Estimate>
Found search(const Problem& problem, const Arch& arch, const Geometry& one, int most_width,
             const GeometryOf& geometry, const Allowed& allowed, const Estimate& estimate) {
  Found best;
  for_tiles(problem, one, most_width, [&](const Tiles& tiles) {
    const Geometry g = geometry(tiles);
    const int by_registers = allowed(g);
    if (by_registers == 0 || g.pixels * g.w.dilation > kMostPixels) return false;
    if (g.shared_bytes > shared_per_block(arch)) return false;
    const int resident = std::min({by_registers, most_blocks(arch.compute_capability),
                                   blocks_that_fit(arch, g.shared_bytes)});
    const Found found = estimate(tiles, g, resident);
    if (best.us < 0 || found.us < best.us) best = found;
    return true;
  });
  return best;
}

std::optional<std::string> refuse(const Problem& problem, const Arch& arch);
// What memory gets through on an H100, and what costs more, in parts of the time.
struct Memory {
  double bytes_per_us;  // a large copy moves 3.0e6
  double reread;        // of bytes that are read twice, which come from the L2
  double narrow;        // of a block's channels that are less than two lines of the L2
  double partly;        // of those that a box brings beyond them
};
double memory_us(const Problem& problem, const Arch& arch, const Geometry& g, const Memory& memory);
// The plan of the best tiles, of which `g` is the geometry.
Answer plan_of(const Kernel& kernel, const Problem& problem, const Geometry& g, const Found& best,
               int stages);

}  // namespace dwconv::rows
