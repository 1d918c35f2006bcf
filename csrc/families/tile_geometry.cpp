#include "tile.h"

namespace dwconv::tile {
namespace {

// More than any device can hold counts as so much more, so that sums of a few still fit 32 bits.
constexpr int capped(std::int64_t count) {
  constexpr std::int64_t kTooMuch = 1 << 27;
  return static_cast<int>(std::min(count, kTooMuch));
}

Access access_of(const Window& h, const Window& w, const Problem& problem, int columns) {
  if (w.stride > 1) return {Mode::strided, 1, 0, columns};
  if (w.dilation > 1 || h.dilation > 1) return {Mode::dilated, 1, 0, columns};
  const Access narrow{Mode::dense, 1, 0, columns};
  // Results leave in pairs.
  if (w.source % 2 != 0 || w.result % 2 != 0) return narrow;
  if (problem.pass == Pass::backward_weight && h.kernel != w.kernel && w.kernel != 11)
    return narrow;
  for (int i = 0; i < wide_filters(problem.dtype); ++i) {
    if (kWideFilters[i].kernel_w != w.kernel || kWideFilters[i].pad != w.pad) continue;
    // Behind same padding, results leave in pieces of 4 where the source comes in them; with other
    // padding on the right they may not fit.
    const bool same = 2 * w.pad == w.kernel - 1;
    const bool fours = w.source % 4 == 0 && (!same || w.result % 4 == 0);
    return {Mode::dense, fours ? 4 : 2, w.pad, kWideColumns};
  }
  return narrow;
}

void choose_windows(Geometry& g, const Problem& problem, const Tiling& tiling) {
  if (by_phases(problem)) {
    g.h = phase_window(problem.h);
    g.w = phase_window(problem.w);
    g.tile_rows = kStepRows;
    return;
  }
  const bool mirrored = problem.pass == Pass::backward_input;
  g.h = mirrored ? mirrored_window(problem.h) : forward_window(problem.h);
  g.w = mirrored ? mirrored_window(problem.w) : forward_window(problem.w);
  g.access = access_of(g.h, g.w, problem, tiling.columns);
  if (problem.pass == Pass::backward_weight) {
    g.tile_rows = kSumRows[static_cast<int>(g.access.mode)];
    g.filter_rows = sum_filter_rows(g.h.kernel, g.w.kernel);
    g.roles = ceil_div(g.h.kernel, g.filter_rows);
  } else {
    g.tile_rows = g.access.columns == 1 ? tiling.tile_rows
                  : g.access.columns == kSharingColumns
                      ? kSharingRows[static_cast<int>(g.access.mode)]
                      : kWideRows;
    g.filter_rows = filter_rows_of(g.access, g.w.kernel);
  }
}

// A thread of a weight gradient has sums for one channel: of several channels, threads take whole
// images at a time.
int round_of(const Geometry& g, int threads) {
  const int image_items = capped(static_cast<std::int64_t>(g.channels) * g.plane_items);
  const int most = g.channels == 1 ? threads : threads / image_items * image_items;
  return std::min(g.items, most);
}

}  // namespace

Geometry geometry(const Problem& problem, const Tiling& tiling) {
  Geometry g;
  choose_windows(g, problem, tiling);
  g.channels = tiling.planes;
  g.groups = static_cast<int>((problem.channels + g.channels - 1) / g.channels);
  g.images = tiling.images;
  g.image_blocks = static_cast<int>((problem.batch + g.images - 1) / g.images);
  g.planes = g.channels * g.images;
  g.rows = std::min(tiling.rows, g.h.result);
  g.bands = ceil_div(g.h.result, g.rows);
  g.row_classes = std::min(g.h.dilation, g.rows);
  g.row_tiles = ceil_div(ceil_div(g.rows, g.h.dilation), g.tile_rows);
  g.column_classes = g.access.columns == 1 ? 1 : std::min(g.w.dilation, g.w.result);
  g.strips = g.column_classes * ceil_div(ceil_div(g.w.result, g.column_classes), g.access.columns);
  g.plane_items = g.row_classes * g.row_tiles * g.strips;
  g.items = capped(static_cast<std::int64_t>(g.planes) * g.plane_items);
  g.units = static_cast<std::int64_t>(g.groups) * g.image_blocks * g.bands;

  const bool weight = problem.pass == Pass::backward_weight;
  g.round = weight ? round_of(g, tiling.threads / g.roles) : tiling.threads;
  const auto bytes = static_cast<int>(size_of(problem.dtype));
  const int source_rows = g.whole() ? g.h.source : std::min(g.h.source, g.h.reach(g.rows));
  const auto elements = [&](std::int64_t rows, std::int64_t columns) {
    return g.planes * rows * columns;
  };
  g.grad_at = run_bytes(elements(source_rows, g.w.source), bytes);
  g.stage_bytes = g.grad_at;
  const int result_run = run_bytes(elements(g.rows, g.w.result), bytes);
  if (weight) g.stage_bytes += result_run;
  g.rest_at = tiling.stages * g.stage_bytes;
  if (weight) {
    g.barriers_at = g.rest_at + kSumBatch * tiling.threads * 4;
  } else {
    const int taps = static_cast<int>(problem.taps());
    g.filter_bytes = round_up(g.channels * (taps + 1) * 4, 16);
    g.results_at = g.rest_at + tiling.stages * g.filter_bytes;
    const int steps_run = run_bytes(elements(2 * g.rows, problem.w.input), bytes);
    if (by_phases(problem)) {
      // Four times the source: one place for them.
      g.barriers_at = g.results_at + steps_run;
    } else {
      g.result_bytes = result_run;
      g.barriers_at = g.results_at + 2 * g.result_bytes;
    }
  }
  g.zeros_at = g.barriers_at + round_up(control_bytes(tiling.stages), 16);
  g.shared_bytes = g.zeros_at + kZeroBytes;
  return g;
}

}  // namespace dwconv::tile
