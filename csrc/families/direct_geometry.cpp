#include "direct.h"

namespace dwconv::direct {

Geometry geometry(const Problem& problem, const Tiling& tiling) {
  Geometry g;
  g.h = met_taps(window_of(problem, problem.h), g.first_tap_row);
  g.w = met_taps(window_of(problem, problem.w), g.first_tap);
  g.tile_rows = tiling.tile_rows;
  g.images = tiling.images;
  g.image_blocks = static_cast<int>((problem.batch + g.images - 1) / g.images);
  g.rows = std::min(tiling.rows, g.h.result);
  g.segments = ceil_div(g.h.result, g.rows);
  g.width = tiling.width;
  g.parts = ceil_div(g.w.result, g.width);
  g.tiles = ceil_div(std::min(g.width, g.w.result), kColumns);
  g.groups = ceil_div(g.rows, g.tile_rows);
  g.chunks = ceil_div(g.w.kernel, kColumns);
  g.source_rows = std::min(g.h.source, g.h.reach(g.rows));

  // The last thread's last 8 taps see 16 columns.
  g.half = g.tiles + g.chunks;
  // Threads of one row of results go on in the next image: in the bank after the last one's.
  g.image_quads = g.source_rows * g.row_quads();
  g.image_quads += ((g.tiles - g.image_quads) % 8 + 8) % 8;
  g.tap_pitch = round_up(g.w.kernel, kQuad);
  g.filter_at = g.row_quads() * kQuadBytes;
  const std::int64_t filter_bytes = std::int64_t{4} * g.h.kernel * g.tap_pitch;
  const std::int64_t rows_at = g.filter_at + filter_bytes;
  const std::int64_t bytes = rows_at + std::int64_t{kQuadBytes} * g.images * g.image_quads;
  constexpr std::int64_t kTooMuch = 1 << 22;
  g.rows_at = static_cast<int>(std::min(rows_at, kTooMuch));
  g.shared_bytes = static_cast<int>(std::min(bytes, kTooMuch));
  g.units = problem.channels * g.image_blocks * g.segments * g.parts;
  return g;
}

}  // namespace dwconv::direct
