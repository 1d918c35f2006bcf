#include "toeplitz.h"

namespace dwconv::toeplitz {
namespace {

// What a walk costs beside its steps, in steps: its places, the filter. A third of what the
// compiled kernels say, for it does not wait as the steps do.
constexpr int kWalkSteps = 4;

// A multiple of 16 bytes. At odd ones the same element of neighbouring images is in different
// banks.
int run_step(std::int64_t elements, int images) {
  const int bytes = run_bytes(elements, 2);
  return images > 1 ? bytes | 16 : bytes;
}

void choose_windows(Geometry& g, const Problem& problem) {
  Access& a = g.access;
  a.kernel_h = static_cast<int>(problem.h.kernel);
  a.mode = by_phases(problem) ? Mode::phases : problem.h.stride == 2 ? Mode::strided : Mode::dense;
  g.h = window_of(problem, problem.h);
  g.w = window_of(problem, problem.w);
  const bool planes = problem.layout == Layout::nhwc;
  // Columns that pairs want before the first.
  const int odd = !planes && g.w.source % 2 == 0 ? g.w.pad % 2 : 0;
  // Strided rows come with strided columns as a rule, which take two parts.
  a.parts = kMaxParts;
  if (a.mode == Mode::dense) {
    const bool one_window =
        g.w.reach(kColumns) > kWindow && g.w.reach(kFewColumns) + odd <= kWindow;
    if (one_window && ceil_div(g.w.result, kFewColumns) < 2 * ceil_div(g.w.result, kColumns))
      g.columns = kFewColumns;
    a.parts = ceil_div(g.w.reach(g.columns), kWindow);
  }
  const bool lead = planes && g.w.pad % 2 != 0;
  g.end = lead + g.w.source;
  // N19 C1194 58x7 k11 float16 took 72 us with two windows, and takes 48.
  g.holds_image = a.mode == Mode::dense && g.w.reach(kColumns) > kWindow && g.end <= kWindow &&
                  g.w.result <= kColumns && g.w.kernel <= most_taps(problem.layout);
  if (g.holds_image) {
    g.columns = kColumns;
    a.parts = 1;
  }
  if (planes) {
    a.unit = 2;
    g.lead = lead;
    g.w.pad -= g.lead;
    g.w.source = round_up(g.end, 2);
    if (g.holds_image) g.shift = -g.w.pad;
    return;
  }
  if (g.holds_image) {
    a.unit = has_pairs(a.kernel_h, 1) && g.w.source % 2 == 0 ? 2 : 1;
    g.shift = -g.w.pad;
    return;
  }
  const int spare = a.windows() * kWindow - g.w.reach(g.columns);
  const bool pairs = has_pairs(a.kernel_h, a.parts) && g.w.source % 2 == 0 && odd <= spare;
  a.unit = pairs ? 2 : 1;
  g.shift = pairs ? odd : 0;
}

// Cuts the rows of a unit so that the warps finish soonest; `own`: which have channels to
// themselves, or share one.
void choose_walks(Geometry& g, bool own) {
  const int rows_of_class = ceil_div(g.rows, g.row_classes);
  int best = 0;
  for (int walks = 1; walks <= std::min(rows_of_class, 2 * g.warps); ++walks) {
    const int rows = ceil_div(rows_of_class, walks);
    const int of_channel = g.row_classes * walks * g.batches;
    const int rounds =
        own ? ceil_div(g.channels, g.warps / g.sharers) * ceil_div(of_channel, g.sharers)
            : ceil_div(g.channels * of_channel, g.warps);
    const int cost = rounds * (rows + g.access.ring() - 1 + kWalkSteps);
    if (best != 0 && cost >= best) continue;
    best = cost;
    g.walks = ceil_div(rows_of_class, rows);
    g.walk_rows = rows;
  }
}

// From one plane in shared memory to the next: an odd number of words, so that the same pixel of
// neighbouring channels is in different banks.
int plane_step(std::int64_t rows, std::int64_t columns) {
  constexpr std::int64_t kTooMuch = 1 << 22;
  return static_cast<int>(std::min(rows * columns / 2, kTooMuch) | 1) * 2;
}

// Shared memory of a unit of planes; columns of results.
void place_planes(Geometry& g, const Problem& problem, std::int64_t columns) {
  g.source_plane = plane_step(g.source_rows, g.w.source);
  g.result_plane = plane_step(g.result_rows, round_up(static_cast<int>(columns), 2));
  g.source_run = run_bytes(std::int64_t{g.channels} * g.source_plane, 2);
  g.result_run = run_bytes(std::int64_t{g.channels} * g.result_plane, 2);
  g.stage_bytes = g.images * g.source_run;
  if (problem.pass == Pass::backward_weight) {
    g.stage_bytes += g.images * g.result_run;
    g.rest_at = g.stages_at + g.stage_bytes;
    const int sums = static_cast<int>(std::min<std::int64_t>(problem.sums(), 1 << 12));
    const int products = 4 * g.warps * g.access.parts * kWindow * kSumPitch;
    g.shared_bytes = g.products_at(sums) + products + kMarginBytes;
    return;
  }
  g.rest_at = g.stages_at + g.stage_bytes;
  const int taps = g.access.kernel_h * tap_pitch(g.access.parts);
  g.results_at = round_up(g.rest_at + kTapTableBytes + g.channels * (4 + 2 * taps), 16);
  g.shared_bytes = g.results_at + g.images * g.result_run + kMarginBytes;
}

}  // namespace

Geometry geometry(const Problem& problem, const Tiling& tiling) {
  const bool weight = problem.pass == Pass::backward_weight;
  Geometry g;
  choose_windows(g, problem);
  const Access& a = g.access;
  const bool planes = problem.layout == Layout::nhwc, own = planes && weight;
  if (planes) g.warps = (weight ? pixel_sum_threads(a) : pixel_threads(a)) / 32;
  g.channels = tiling.planes;
  g.groups = ceil_div(static_cast<int>(problem.channels), g.channels);
  g.images = tiling.images;
  g.image_blocks = ceil_div(static_cast<int>(problem.batch), g.images);
  g.rows = std::min(tiling.rows, g.h.result);
  g.bands = ceil_div(g.h.result, g.rows);
  g.strips = ceil_div(g.w.result, g.columns);
  g.row_classes = std::min(g.h.dilation, g.rows);
  g.units = static_cast<std::int64_t>(g.groups) * g.image_blocks * g.bands;
  g.batches = ceil_div(g.images * g.strips, kPositions);
  if (own) g.sharers = std::max(1, g.warps / g.channels);
  choose_walks(g, own);

  g.source_rows = g.whole() ? g.h.source : std::min(g.h.source, g.h.reach(g.rows));
  const bool phases = a.mode == Mode::phases;
  g.result_rows =
      phases ? static_cast<int>(std::min<std::int64_t>(2 * g.rows, problem.h.input)) : g.rows;
  const std::int64_t result_columns = phases ? problem.w.input : g.w.result;
  if (planes) {
    place_planes(g, problem, result_columns);
    return g;
  }
  g.source_run = run_step(std::int64_t{g.channels} * g.source_rows * g.w.source, g.images);
  g.result_run = run_step(std::int64_t{g.channels} * g.result_rows * result_columns, g.images);
  g.stage_bytes = g.images * (g.source_run + (weight ? g.result_run : 0));
  g.rest_at = g.stages_at + tiling.stages * g.stage_bytes;
  if (weight) {
    const int totals = static_cast<int>(problem.sums());
    const int products = a.parts * kWindow * kSumPitch;
    g.barriers_at = round_up(g.rest_at + 4 * kWarps * (totals + products), 16);
  } else {
    const int filters = g.channels * (a.kernel_h * a.parts * 32 * 8 + 4);
    g.results_at = round_up(g.rest_at + filters, 16);
    const int results = g.images * g.result_run;
    g.result_bytes = tiling.places == 2 ? results : 0;
    g.barriers_at = g.results_at + tiling.places * results;
  }
  g.shared_bytes = g.barriers_at + std::max(8 * tiling.stages, kMarginBytes);
  return g;
}

}  // namespace dwconv::toeplitz
