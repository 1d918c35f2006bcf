#include "banded.h"

namespace dwconv::banded {
namespace {

// How many blocks to either side of its own a result's filter reaches, which begins `pad` columns
// before it: columns of two blocks are up to 7 further or less far apart than the blocks.
int reach_of(int kernel, int pad) {
  const auto blocks = [](int columns) { return columns < 0 ? 0 : columns / kColumns; };
  return std::max(blocks(pad + kColumns - 1), blocks(kernel - 1 - pad + kColumns - 1));
}

// Moves the results by whole blocks of columns, so that their filters reach as far to either side.
int balanced_shift(int kernel, int pad) {
  int best = 0;
  const int middle = ((kernel - 1) / 2 - pad) / kColumns;
  for (const int shift : {middle - 1, middle, middle + 1}) {
    const int reach = reach_of(kernel, pad + kColumns * shift);
    const int least = reach_of(kernel, pad + kColumns * best);
    if (reach < least || (reach == least && std::abs(shift) < std::abs(best))) best = shift;
  }
  return best;
}

}  // namespace

Geometry geometry(const Problem& problem, const Tiling& tiling) {
  Geometry g;
  g.h = window_of(problem, problem.h);
  g.w = window_of(problem, problem.w);
  const int shift = balanced_shift(g.w.kernel, g.w.pad);
  g.pad = g.w.pad + kColumns * shift;
  g.image_block = std::max(0, -shift);
  g.result_block = std::max(0, shift);
  const int blocks = std::max(g.image_block + ceil_div(g.w.source, kColumns),
                              g.result_block + ceil_div(g.w.result, kColumns));
  g.shape.blocks = kMaxBlocks;
  for (const int fit : kBlocks) {
    if (fit >= blocks) {
      g.shape.blocks = fit;
      break;
    }
  }
  const int reach = reach_of(g.w.kernel, g.pad);
  const bool one_tile = blocks <= kMaxBlocks;
  g.shape.reach = std::max(reach, std::min(1, g.shape.blocks - 1));
  if (one_tile) g.shape.reach = std::min(g.shape.reach, g.shape.blocks - 1);
  if (g.shape.reach > kMaxReach) return g;  // there is no such kernel
  const int step = kMaxBlocks - 2 * g.shape.reach;
  g.tiles = one_tile ? 1 : 1 + ceil_div(blocks - kMaxBlocks, step);

  const auto meets = [](const Window& axis, int pad, int reach, int& first, int& count) {
    first = std::clamp(pad - reach, 0, axis.kernel - 1);
    count = std::clamp(pad + reach, first, axis.kernel - 1) - first + 1;
  };
  meets(g.h, g.h.pad, std::max(g.h.source, g.h.result) - 1, g.first_tap_row, g.tap_rows);
  meets(g.w, g.pad, kColumns * (g.shape.reach + 1) - 1, g.first_tap, g.taps);

  g.images = tiling.images;
  g.image_blocks = static_cast<int>((problem.batch + g.images - 1) / g.images);
  while (g.bands * g.images < kPositions) {
    g.bands *= 2;
    ++g.band_bits;
  }
  g.position_groups = ceil_div(g.images, kPositions);
  g.rows = tiling.rows;
  g.segments = ceil_div(g.h.result, g.rows);
  g.source_rows = std::min(g.h.source, g.h.reach(g.rows));
  g.band_rows = round_up(ceil_div(g.rows, g.bands), g.shape.rows());
  g.row_groups = g.band_rows / g.shape.rows();
  g.bands_above = ceil_div(std::max(g.h.pad, 0), g.band_rows);

  // `ldmatrix` meets 8 rows, each in banks of its own: of neighbouring bands, which are an odd
  // number of 16 bytes apart, and of planes, which are an odd number of times as many as a plane's
  // bands.
  const auto pieces = [](int bytes) { return bytes / 16; };
  if (g.bands > 1 && pieces(g.band_rows * g.shape.row_bytes()) % 2 == 0) g.skew_bytes = 16;
  g.plane_bytes = g.source_rows * g.shape.row_bytes() +
                  (g.source_rows - 1 + g.shape.rows() - 1) / g.band_rows * g.skew_bytes;
  const int apart = std::min(g.bands, 8);
  while (pieces(g.plane_bytes) % (2 * apart) != apart)
    g.plane_bytes += 16;
  g.filters_at = g.images * g.plane_bytes;
  g.stage_bytes = round_up(g.filters_at + g.tap_rows * g.shape.filter_bytes(), 16);
  g.barriers_at = g.shape.zero_bytes() + tiling.stages * g.stage_bytes;
  g.shared_bytes = g.barriers_at + tiling.stages * (8 + 4) + 4 * (1 + kWarps);
  g.units = static_cast<std::int64_t>(g.image_blocks) * g.segments * g.tiles * problem.channels;
  return g;
}

}  // namespace dwconv::banded
