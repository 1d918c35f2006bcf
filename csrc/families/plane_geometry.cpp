#include "plane.h"

namespace dwconv::plane {
namespace {

// Whether planes get 16 bytes between them in shared memory. Lanes of neighbouring planes read the
// same element of each: in steps of 8 banks or more, 8 to 32 of them would meet in one. With the
// gap 4 do at most, for the planes lie an odd multiple of 4 banks apart.
constexpr bool spaced(int plane_bytes) { return plane_bytes % 32 == 0; }

constexpr int kBankBytes = 128;  // of all banks of shared memory

void lay_out_runs(Geometry& g, const Problem& problem) {
  const auto bytes = static_cast<int>(size_of(problem.dtype));
  // Planes of all channels follow each other through the images.
  const bool together = g.images == 1 || g.channels == problem.channels;
  const int planes = g.channels * g.images;
  g.run_planes = spaced(g.plane * bytes) ? 1 : together ? planes : g.channels;
  g.runs = planes / g.run_planes;
  g.run_step = run_bytes(static_cast<std::int64_t>(g.run_planes) * g.plane, bytes);
  // A warp with planes of several runs finds them in the banks in which one run would have them.
  if (g.runs > 1 && !spaced(g.plane * bytes) && g.channels * g.tiles < kLanes)
    g.run_step += kBankBytes - 16;
}

}  // namespace

Geometry geometry(const Problem& problem, const Tiling& tiling) {
  Geometry g;
  g.rows = static_cast<int>(problem.h.input);
  g.columns = static_cast<int>(problem.w.input);
  g.plane = g.rows * g.columns;
  g.access.tile = tiling.tile_rows;
  g.access.halves = ceil_div(g.columns, tiling.tile_rows);
  g.access.exact = exact_tile(problem) == tiling.tile_rows;
  g.halves_h = ceil_div(g.rows, tiling.tile_rows);
  g.tiles = g.access.halves * g.halves_h;
  g.channels = tiling.planes;
  g.groups = static_cast<int>((problem.channels + g.channels - 1) / g.channels);
  g.images = tiling.images;
  g.image_blocks = static_cast<int>((problem.batch + g.images - 1) / g.images);
  g.lanes = g.channels * g.images * g.tiles;
  g.units = static_cast<std::int64_t>(g.groups) * g.image_blocks;
  lay_out_runs(g, problem);

  const int taps = static_cast<int>(problem.taps());
  g.grad_at = g.runs * g.run_step;
  if (problem.pass == Pass::backward_weight) {
    g.stage_bytes = 2 * g.grad_at;
    g.sums_at = tiling.stages * g.stage_bytes;
    // Of two rows of the filter at a time.
    g.barriers_at = g.sums_at + 2 * static_cast<int>(problem.w.kernel) * tiling.threads * 4;
  } else {
    // Filters pass through a stage on their way into registers.
    const auto bytes = static_cast<int>(size_of(problem.dtype));
    g.stage_bytes = std::max(g.grad_at, run_bytes(g.channels * taps, bytes));
    g.barriers_at = tiling.stages * g.stage_bytes;
  }
  g.shared_bytes = round_up(g.barriers_at + 8 * tiling.stages, 16);
  return g;
}

}  // namespace dwconv::plane
