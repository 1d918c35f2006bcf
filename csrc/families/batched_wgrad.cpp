#include "batched_wgrad.h"

#include <cmath>

namespace dwconv::batched {

SumGeometry sum_geometry(const Problem& problem, const Tiling& tiling) {
  SumGeometry g;
  g.h = forward_window(problem.h);
  g.w = forward_window(problem.w);
  const auto clamp = [&](int row) { return std::clamp(row, 0, g.h.kernel - 1); };
  // Row r of the filter takes result 0 to row r * dilation - pad of the image.
  g.first_tap_row = clamp(ceil_div(std::max(g.h.pad - g.h.result + 1, 0), g.h.dilation));
  // With a dilation the image may lie between two of them: then one, for there are tasks for some.
  const int last_tap_row = clamp((g.h.source - 1 + g.h.pad) / g.h.dilation);
  g.tap_rows = std::max(last_tap_row - g.first_tap_row + 1, 1);
  g.tap_groups = ceil_div(g.tap_rows, kTapRows);
  g.channels = tiling.planes;
  g.groups = static_cast<int>((problem.channels + g.channels - 1) / g.channels);
  g.images = tiling.images;
  g.parts = static_cast<int>((problem.batch + g.images - 1) / g.images);
  g.source_quads = 2 * ceil_div(g.w.source, kColumns);
  g.result_quads = 2 * ceil_div(g.w.result, kColumns);
  // Blocks of columns that are d blocks apart meet by the taps from 8 * d - 7 + pad to 8 * d + 7 +
  // pad.
  const auto block_of = [](int apart) {  // rounded down
    return apart >= 0 ? apart / kColumns : -ceil_div(-apart, kColumns);
  };
  const int low = block_of(-g.w.pad), high = block_of(g.w.reach(1) - 1 - g.w.pad + kColumns - 1);
  g.first_apart = std::clamp(low, 1 - g.result_blocks(), g.source_blocks() - 1);
  g.aparts = std::clamp(high, g.first_apart, g.source_blocks() - 1) - g.first_apart + 1;

  g.quad_pitch = g.images + 1;
  const std::int64_t quad_bytes = std::int64_t{16} * g.channels * g.quad_pitch;
  const std::int64_t result_at = quad_bytes * g.h.source * g.source_quads;
  const std::int64_t sums_at = result_at + quad_bytes * g.h.result * g.result_quads;
  const std::int64_t bias_at = sums_at + std::int64_t{4} * kSums * g.tasks();
  const std::int64_t bytes = bias_at + std::int64_t{4} * kLanes * g.channels;
  constexpr std::int64_t kTooMuch = 1 << 22;
  g.result_at = static_cast<int>(std::min(result_at, kTooMuch));
  g.sums_at = static_cast<int>(std::min(sums_at, kTooMuch));
  g.bias_at = static_cast<int>(std::min(bias_at, kTooMuch));
  g.shared_bytes = static_cast<int>(std::min(bytes, kTooMuch));
  return g;
}

namespace {

// What an H100 gets through, for the choice among tilings and among families: fitted with the
// forward pass's, see batched.cpp.
constexpr double kLaunchUs = 4;
constexpr double kSumUs = 4;             // the kernel that adds the partial sums
constexpr double kBytesPerUs = 2.3e6;    // a large copy moves 3.0e6
constexpr double kCyclesPerUs = 1.05e3;  // of a multiprocessor
constexpr double kBlockCycles = 16;      // of a warp, beside the products of two blocks of columns
constexpr double kFlushCycles = 350;     // of a task's sums
constexpr double kLoadCycles = 8;        // of a warp, for its elements
constexpr double kUnitCycles = 2500;     // of a block's warps together, beside these
constexpr double kPartCycles = 5000;     // of a block, until a part of the images is there
constexpr std::int64_t kWorkspaceBytes = 64 << 20;

double estimate(const Problem& problem, const Arch& arch, const SumGeometry& g, int warps,
                std::int64_t slices, int resident) {
  const int lane_images = g.images / kLanes;
  double blocks = 0;  // pairs of blocks of columns that meet
  for (int i = 0; i < g.aparts; ++i) {
    const int apart = g.first_apart + i;
    blocks +=
        std::max(0, std::min(g.result_blocks(), g.source_blocks() - apart) - std::max(0, -apart));
  }
  double rows = 0;  // pairs of a row of the filter and one of the output gradient that meet
  for (int r = g.first_tap_row; r < g.first_tap_row + g.tap_rows; ++r) {
    const int to_row = r * g.h.dilation - g.h.pad;
    rows += std::max(0, std::min(g.h.result, g.h.source - to_row) - std::max(0, -to_row));
  }
  const double elements = static_cast<double>(g.h.source) * g.source_quads * kQuad +
                          static_cast<double>(g.h.result) * g.result_quads * kQuad;
  const double part =
      g.channels * rows * blocks * lane_images * (64 + kBlockCycles / kTapRows + 4) +
      g.tasks() * kFlushCycles + kLoadCycles * g.channels * elements * lane_images + kUnitCycles;
  const double parts = std::ceil(static_cast<double>(g.parts) / static_cast<double>(slices));
  const double turns_of_warps = static_cast<double>(ceil_div(g.tasks(), warps) * warps) / g.tasks();
  const double each = static_cast<double>(g.groups * slices) / arch.multiprocessors;
  const double alone = parts * (part * turns_of_warps / std::min(4, warps) + kPartCycles) + 2000;
  const double work = parts * part / 4;
  const double compute =
      std::max(std::ceil(each) * work, std::ceil(each / resident) * alone) / kCyclesPerUs;
  const double bytes = 4.0 * static_cast<double>(problem.input_numel() + problem.output_numel());
  const double memory = bytes / (kBytesPerUs * arch.multiprocessors / 132);
  return kLaunchUs + (slices > 1 ? kSumUs : 0) + std::max(compute, memory) +
         0.3 * std::min(compute, memory);
}

}  // namespace

SumPlan plan_sums(const Problem& problem, const Arch& arch) {
  SumPlan best;
  const std::int64_t bytes_of_slice = problem.channels * problem.sums() * 4;
  for (const int lane_images : kLaneImages) {
    for (int planes = 1; planes <= std::min<std::int64_t>(problem.channels, kMaxWarps); ++planes) {
      for (const int warps : {4, 8, 16}) {
        const Tiling tiling{.planes = planes,
                            .images = kLanes * lane_images,
                            .rows = 1,
                            .stages = 1,
                            .threads = 32 * warps,
                            .tile_rows = kTapRows,
                            .columns = kColumns,
                            .places = 0};
        const SumGeometry g = sum_geometry(problem, tiling);
        if (g.shared_bytes > shared_per_block(arch)) break;
        const int resident = std::min(kMaxWarps / warps, blocks_that_fit(arch, g.shared_bytes));
        for (std::int64_t slices = 1; slices <= g.parts;
             slices += std::max<std::int64_t>(slices / 4, 1)) {
          if (slices > 1 && slices * bytes_of_slice > kWorkspaceBytes) break;
          const double us = estimate(problem, arch, g, warps, slices, resident);
          if (best.us < 0 || us < best.us) best = {us, tiling, slices};
        }
      }
    }
  }
  return best;
}

}  // namespace dwconv::batched
