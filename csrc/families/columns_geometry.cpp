#include "columns.h"
#include "image_blocks.h"

namespace dwconv::columns {
namespace {

// Two copies of a filter column, which 8 lanes each read 4 words of: in different halves of the
// banks, or nearly.
int copy_bytes_of(int taps) {
  int words = ceil_div(taps + 2 * kTapMargin, 2) + 1;
  while (words % 32 < 8 || words % 32 > 24)
    ++words;
  return 4 * words;
}

// More than any device has counts as so much, so that sums of a few still fit 32 bits.
int capped(std::int64_t bytes) { return static_cast<int>(std::min<std::int64_t>(bytes, 1 << 28)); }

// Of the tiles that there are, the one that takes the fewest steps. The small ones are for whole
// images whose rows all meet the filter.
int steps_of(const Window& axis) {
  const int rows = std::max(axis.source, axis.result);
  if (rows <= 2 * kStep && axis.pad >= 0 && axis.pad < axis.kernel) return ceil_div(rows, kStep);
  const auto all = [rows](int steps) { return round_up(rows, steps * kStep); };
  return all(3) < all(4) ? 3 : 4;
}

}  // namespace

Geometry geometry(const Problem& problem, const Tiling& tiling) {
  Geometry g;
  g.h = window_of(problem, problem.h);
  g.w = met_taps(window_of(problem, problem.w), g.first_tap);
  g.shape.steps = steps_of(g.h);

  g.channels = tiling.planes;
  g.groups = static_cast<int>((problem.channels + g.channels - 1) / g.channels);
  g.images = tiling.images;
  g.image_blocks = static_cast<int>((problem.batch + g.images - 1) / g.images);
  g.rows = std::min(tiling.rows, g.h.result);
  g.bands = ceil_div(g.h.result, g.rows);
  g.units = static_cast<std::int64_t>(g.groups) * g.image_blocks * g.bands;

  while (1 << g.image_bits < tiling.columns)
    ++g.image_bits;
  g.tiles = ceil_div(g.rows, g.shape.rows());
  g.image_groups = ceil_div(g.images, 1 << g.image_bits);
  g.column_groups = ceil_div(ceil_div(g.w.result, kBlock), g.blocks_across());
  g.tasks = g.channels * g.image_groups * g.column_groups * g.tiles;
  g.copy_bytes = copy_bytes_of(g.h.kernel);
  g.filter_column = 2 * g.copy_bytes;
  g.taps_bytes = capped(std::int64_t{g.channels} * g.w.kernel * g.filter_column);

  const int source_rows = g.source_rows();
  const std::int64_t planes = g.channels;
  g.image_step = std::max(odd_run_bytes(planes * source_rows * g.w.source),
                          odd_run_bytes(planes * g.rows * g.w.result));
  g.filters_at = g.images * g.image_step;
  g.stage_bytes = g.filters_at + run_bytes(planes * problem.taps(), 2);
  g.taps_at = tiling.stages * g.stage_bytes;

  // Columns that results of one plane read beyond it are zeros, which the next has before it; what
  // those read that are not there may be anything.
  g.lead = std::max(g.w.pad, 0);
  const int beyond = g.w.result - 1 - g.w.pad + g.w.kernel - g.w.source;
  g.source_tiles = ceil_div(source_rows, g.shape.rows());
  g.parts = std::clamp(tiling.threads / 32 / g.planes(), 1, ceil_div(g.w.source, kBlock));
  g.sheet_bytes = (g.w.source + std::max(g.lead, beyond)) * g.shape.column_bytes();
  g.plane_bytes = capped(std::int64_t{g.source_tiles} * g.sheet_bytes);
  g.image_bytes = capped(std::int64_t{g.channels} * g.plane_bytes);
  g.turned_at = g.taps_at + round_up(g.taps_bytes, 16);
  g.turned_bytes = capped(std::int64_t{g.images} * g.image_bytes +
                          (g.lead + g.column_groups * g.blocks_across() * kBlock - g.w.result) *
                              g.shape.column_bytes());
  g.barriers_at = g.turned_at + g.turned_bytes;
  g.shared_bytes = g.barriers_at + 8 * tiling.stages;
  return g;
}

}  // namespace dwconv::columns
