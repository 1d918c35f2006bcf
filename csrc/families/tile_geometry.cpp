#include <numeric>

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
  g.h = window_of(problem, problem.h);
  g.w = window_of(problem, problem.w);
  if (by_phases(problem)) {
    g.tile_rows = kStepRows;
    return;
  }
  g.access = access_of(g.h, g.w, problem, tiling.columns);
  if (problem.pass == Pass::backward_weight) {
    g.tile_rows = sum_rows_of(g.access);
    g.filter_rows = sum_filter_rows(g.access, problem.dtype, g.h.kernel, g.w.kernel);
    g.roles = ceil_div(g.h.kernel, g.filter_rows);
  } else {
    g.tile_rows = rows_of(g.access, tiling.tile_rows);
    g.filter_rows = filter_rows_of(g.access, g.w.kernel);
  }
}

// A thread of a weight gradient has sums for one channel: of several planes, threads take whole
// images at a time.
int round_of(const Geometry& g, int threads) {
  const int image_items = capped(static_cast<std::int64_t>(g.channels) * g.plane_items);
  const int most = g.planes == 1 ? threads : threads / image_items * image_items;
  return std::min(g.items, most);
}

// Level by level, the threads of a warp mostly meet the upper and the lower edge together, and skip
// the rows beyond. It has to save much, and the planes of a warp must not lie in the same banks of
// shared memory: N3631 C2 80x10 k3 with stride 2 float32 took 20 us, and 29 level by level.
bool pays_by_level(const Geometry& g, int element_bytes) {
  constexpr double kMuch = 0.9;
  constexpr std::int64_t kBanks = 32, kFewConflicts = 2;
  constexpr int kWarp = 32;
  if (g.round_planes == 1 || g.row_tiles == 1 || !skips_rows(g.access)) return false;
  const std::int64_t words = std::int64_t{g.h.source} * g.w.source * element_bytes / 4;
  const int planes = std::min(ceil_div(kWarp, g.level_items), g.round_planes);
  return planes * std::gcd(words, kBanks) <= kFewConflicts * kBanks && share_inside(g) < kMuch;
}

}  // namespace

double share_inside(const Geometry& g) {
  const int levels = g.row_tiles * g.bands * g.tile_rows;
  const int step = g.h.stride * g.h.dilation;
  double inside = 0;
  for (int a = 0; a < g.h.kernel; ++a) {
    const int shift = g.h.pad - a * g.h.dilation;  // result r reads row r * step - shift
    const int first = shift > 0 ? ceil_div(shift, step) : 0;
    const int last = shift + g.h.source > 0 ? ceil_div(shift + g.h.source, step) : 0;
    inside += std::max(std::min(last, levels) - first, 0);
  }
  return inside / (static_cast<double>(levels) * g.h.kernel);
}

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
  g.level_items = g.row_classes * g.strips;
  g.plane_items = g.level_items * g.row_tiles;
  g.items = capped(static_cast<std::int64_t>(g.planes) * g.plane_items);
  g.units = static_cast<std::int64_t>(g.groups) * g.image_blocks * g.bands;

  const bool weight = problem.pass == Pass::backward_weight;
  g.round = weight ? round_of(g, tiling.threads / g.roles) : tiling.threads;
  g.round_planes = weight ? std::max(g.round / g.plane_items, 1) : g.planes;
  const auto bytes = static_cast<int>(size_of(problem.dtype));
  g.by_level = !by_phases(problem) && pays_by_level(g, bytes);
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
    // The warp that serves brings those of the next units.
    g.results_at = g.rest_at + (tiling.served ? tiling.stages : 1) * g.filter_bytes;
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
