#include "banded_wgrad.h"

#include <cmath>

namespace dwconv::banded {

SumGeometry sum_geometry(const Problem& problem, const Tiling& tiling) {
  SumGeometry g;
  g.h = forward_window(problem.h);
  g.w = forward_window(problem.w);
  g.shape.columns = g.w.kernel <= kTileW ? 1 : 2;
  g.shape.rows = g.h.kernel <= 2 * kTileH ? 2 : 4;
  g.tiles_w = ceil_div(g.w.kernel, g.shape.tile_w());
  g.tiles_h = ceil_div(g.h.kernel, g.shape.tile_h());
  g.images = tiling.images;
  g.rows = std::min(tiling.rows, g.h.source);
  g.bands = ceil_div(g.h.source, g.rows);
  const int steps = ceil_div(g.w.result, kStep);
  g.chunks = ceil_div(steps, kMostAtOnce);
  g.shape.steps = std::max(ceil_div(steps, g.chunks), kFewestAtOnce);
  // A tile's row begins with the multiple of 8 columns before the first that it reads. Rows of an
  // odd number of elements come as words, which may have one more.
  g.source_pitch = 2 * round_up(g.steps() * kStep + g.shape.tile_w() + 8 + g.w.source % 2, 8);
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

// What an H100 gets through: fitted as those of the lines family, and met within 13 %.
constexpr double kLaunchUs = 10.7;
constexpr double kSumUs = 5;              // the kernel that adds the partial sums
constexpr double kBytesPerUs = 2.4e6;     // a large copy moves 3.0e6
constexpr double kCyclesPerUs = 1.75e3;   // of a multiprocessor
constexpr double kProductCycles = 1.3;    // of its four tensor cores together
constexpr double kRowCycles = 4.1;        // of a row of the image, beside its products
constexpr double kUnitCycles = 4300;      // of a block
constexpr double kImageCycles = 262;      // of a unit
constexpr double kPieceCycles = 0.19;     // of a piece of a row, to be copied
constexpr double kMovedRowCycles = 14.5;  // of a row of an odd number of elements
constexpr double kBlockCycles = 1400;

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
  const auto row = [](int columns) {
    const int bytes = std::max(piece_bytes(columns), kWordBytes);
    return 2.0 * columns / bytes * kPieceCycles + columns % 2 * kMovedRowCycles;
  };
  const double of_unit = products * kProductCycles / busy + rows * g.steps() * kRowCycles / 4 +
                         rows * (row(g.w.source) + row(g.w.result)) + g.images * kImageCycles;
  const double compute =
      waves * (kBlockCycles + units * (kUnitCycles + of_unit * resident)) / kCyclesPerUs;
  const double bytes = 2.0 * static_cast<double>(problem.input_numel() + problem.output_numel());
  const double memory = bytes / (kBytesPerUs * arch.multiprocessors / 132);
  return kLaunchUs + (slices > 1 ? kSumUs : 0) + std::max(compute, memory) +
         0.25 * std::min(compute, memory);
}

}  // namespace

SumPlan plan_sums(const Problem& problem, const Arch& arch) {
  const int room = shared_per_multiprocessor(arch) / kSumBlocks - shared_reserve(arch);
  const UnitChoice choice{.most_images = 8,
                          .rows = static_cast<int>(problem.h.input),
                          .threads = kSumThreads,
                          .resident = kSumBlocks};
  return dwconv::plan_sums(
      problem, arch, choice, sum_geometry,
      [&](const SumGeometry& g) { return g.shared_bytes <= room; },
      [&](const SumGeometry& g, std::int64_t slices) {
        return estimate(problem, arch, g, slices);
      });
}

}  // namespace dwconv::banded
