#include "banded_wgrad.h"

#include <cmath>
#include <optional>

namespace dwconv::banded {

SumGeometry sum_geometry(const Problem& problem, const Tiling& tiling) {
  SumGeometry g;
  g.h = forward_window(problem.h);
  g.w = forward_window(problem.w);
  g.shape.columns = g.w.kernel <= kTileW ? 1 : 2;
  g.shape.rows = g.h.kernel <= kTileH ? 1 : g.h.kernel <= 2 * kTileH ? 2 : 4;
  g.tiles_w = ceil_div(g.w.kernel, g.shape.tile_w());
  g.tiles_h = ceil_div(g.h.kernel, g.shape.tile_h());
  g.images = tiling.images;
  g.rows = std::min(tiling.rows, g.h.source);
  g.bands = ceil_div(g.h.source, g.rows);
  const int steps = ceil_div(g.w.result, kStep);
  g.chunks = ceil_div(steps, kMostAtOnce);
  g.shape.steps = ceil_div(steps, g.chunks);
  // A tile's row begins with the multiple of 8 columns before the first that it reads.
  g.source_pitch = 2 * round_up(g.steps() * kStep + g.shape.tile_w() + 8, 8);
  g.result_pitch = 2 * g.steps() * kStep + 16;  // an odd number of 16 bytes, for `ldmatrix`
  g.result_rows = std::min(g.h.result, g.rows + g.shape.tile_h() - 1);
  g.result_at = g.rows * g.source_pitch;
  g.image_bytes = g.result_at + g.result_rows * g.result_pitch;
  g.stage_bytes = g.images * g.image_bytes;
  g.sums_at = g.result_pitch;
  g.stages_at = g.sums_at + round_up(kSumWarps * g.shape.sums() * 4, 16);
  g.shared_bytes = g.stages_at + tiling.stages * g.stage_bytes;
  g.units = (problem.batch + g.images - 1) / g.images * g.bands;
  return g;
}

namespace {

// What an H100 gets through: the times of 70 random problems (float16) in the middle.
constexpr double kLaunchUs = 6;
constexpr double kSumUs = 5;             // the kernel that adds the partial sums
constexpr double kBytesPerUs = 2.4e6;    // a large copy moves 3.0e6
constexpr double kCyclesPerUs = 1.75e3;  // of a multiprocessor
constexpr double kProductCycles = 2.4;   // of its four tensor cores together
constexpr double kRowCycles = 8;         // of a row of the image, beside its products
constexpr double kUnitCycles = 2500;     // of a block
// Of a piece of a row, to be copied; those of 2 bytes are waited for.
constexpr double kPieceCycles = 0.25;
constexpr double kSmallPieceCycles = 0.5;
constexpr double kBlockCycles = 6000;

double estimate(const Problem& problem, const Arch& arch, const SumGeometry& g,
                std::int64_t slices) {
  const double blocks = static_cast<double>(problem.channels * slices * g.tiles());
  const double all = kSumBlocks * arch.multiprocessors;
  const double waves = blocks <= all ? 1 : blocks / all + 0.3;
  const double units = std::ceil(static_cast<double>(g.units) / static_cast<double>(slices));
  const double rows = static_cast<double>(g.images) * round_up(g.rows, kSumWarps);
  const double products = rows * g.steps() * g.shape.columns * g.shape.rows;
  const double resident = std::min(blocks, all) / arch.multiprocessors;
  const double busy = std::min(1.0, resident / kSumBlocks * 0.5 + 0.5);
  const auto pieces = [](int pitch, int columns) {
    const int bytes = piece_bytes(columns);
    return pitch / bytes * (bytes == 2 ? kSmallPieceCycles : kPieceCycles);
  };
  const double of_unit =
      products * kProductCycles / busy + rows * g.steps() * kRowCycles / 4 +
      rows * (pieces(g.source_pitch, g.w.source) + pieces(g.result_pitch, g.w.result));
  const double compute =
      waves * (kBlockCycles + units * (kUnitCycles + of_unit * resident)) / kCyclesPerUs;
  const double bytes = 2.0 * static_cast<double>(problem.input_numel() + problem.output_numel());
  const double memory = bytes / (kBytesPerUs * arch.multiprocessors / 132);
  return kLaunchUs + (slices > 1 ? kSumUs : 0) + std::max(compute, memory) +
         0.25 * std::min(compute, memory);
}

// Of so many images whole, or one in as few bands as fit.
std::optional<Tiling> fitting(const Problem& problem, int images, int room) {
  for (int bands = 1; bands <= (images > 1 ? 1 : 64); bands *= 2) {
    const Tiling tiling{.images = images,
                        .rows = ceil_div(static_cast<int>(problem.h.input), bands),
                        .stages = 2,
                        .threads = kSumThreads,
                        .places = 0};
    if (sum_geometry(problem, tiling).shared_bytes <= room) return tiling;
  }
  return std::nullopt;
}

}  // namespace

SumPlan plan_sums(const Problem& problem, const Arch& arch) {
  SumPlan best;
  const int room = shared_per_multiprocessor(arch) / kSumBlocks - shared_reserve(arch);
  const std::int64_t enough = std::int64_t{4} * kSumBlocks * arch.multiprocessors;  // blocks
  for (const int images : {8, 4, 2, 1}) {
    if (images > 1 && images / 2 >= problem.batch) continue;
    const auto tiling = fitting(problem, images, room);
    if (!tiling) continue;
    const SumGeometry g = sum_geometry(problem, *tiling);
    for (std::int64_t slices = 1; slices <= std::max<std::int64_t>(g.units, 1); slices *= 2) {
      const double us = estimate(problem, arch, g, slices);
      if (best.us < 0 || us < best.us) best = {us, *tiling, slices};
      if (problem.channels * g.tiles() * slices >= enough) break;
    }
  }
  return best;
}

}  // namespace dwconv::banded
