#include "direct_wgrad.h"

#include <cmath>
#include <vector>

namespace dwconv::direct {

SumGeometry sum_geometry(const Problem& problem, const Tiling& tiling) {
  SumGeometry g;
  g.h = met_taps(forward_window(problem.h), g.first_tap_row);
  g.w = met_taps(forward_window(problem.w), g.first_tap);
  g.lanes = {tiling.tile_rows, tiling.columns};
  g.tiles_w = ceil_div(g.w.kernel, g.lanes.tile_w());
  g.tiles_h = ceil_div(g.h.kernel, g.lanes.tile_h());
  g.images = tiling.images;
  g.rows = std::min(tiling.rows, g.h.source);
  g.bands = ceil_div(g.h.source, g.rows);
  g.width = std::min(tiling.width, round_up(g.w.result, kColumns));
  g.parts = ceil_div(g.w.result, g.width);
  g.steps = ceil_div(g.width, kColumns);
  g.source_pitch = 2 * (g.steps + g.lanes.columns) + 1;
  g.result_pitch = 2 * g.steps + 1;
  g.result_rows = std::min(g.h.result, g.rows + g.lanes.tile_h() - 1);

  g.sums_at = g.result_pitch * kQuadBytes;
  g.stage_at = g.sums_at + kSums * g.lanes.count() * 4;
  const std::int64_t source_quads = std::int64_t{g.images} * g.rows * g.source_pitch;
  const std::int64_t result_quads = std::int64_t{g.images} * g.result_rows * g.result_pitch;
  const std::int64_t all_sums = std::int64_t{4} * kSums * kThreads;
  const std::int64_t result_at = g.stage_at + kQuadBytes * source_quads;
  const std::int64_t bytes = std::max(result_at + kQuadBytes * result_quads, g.stage_at + all_sums);
  constexpr std::int64_t kTooMuch = 1 << 22;
  g.result_at = static_cast<int>(std::min(result_at, kTooMuch));
  g.shared_bytes = static_cast<int>(std::min(bytes, kTooMuch));
  g.units = (problem.batch + g.images - 1) / g.images * g.bands * g.parts;
  return g;
}

namespace {

// Cycles of an H100's multiprocessor, by what its kernel's instructions are; of which it gets
// through so many in a microsecond, in the middle of 110 random problems (float32).
constexpr double kLaunchUs = 4;
constexpr double kSumUs = 4;           // the kernel that adds the partial sums
constexpr double kBytesPerUs = 2.4e6;  // a large copy moves 3.0e6
constexpr double kCyclesPerUs = 1.26e3;
constexpr double kStepCycles = 66;  // of a warp, for 8 columns of one of a lane's rows
constexpr double kRowCycles = 90;   // of a row of the image, beside its steps
constexpr double kAlone = 1.15;     // so much longer does a block take that has no other beside it
constexpr double kLoadCycles = 1100;   // of 4 quads of each thread, that are waited for together
constexpr double kFlushCycles = 6000;  // of all sums, and what a block begins with
constexpr std::int64_t kWorkspaceBytes = 64 << 20;

struct LaneChoice {
  Lanes lanes;
  int tiles;    // of the filter
  double cost;  // of a lane's products, against those of tiles whose lanes all have some
};

// Ways to lay lanes over the filter, of so many groups of 4 rows and of 8 columns: those that no
// other has both fewer tiles, each of which loads all images, and fewer idle lanes than.
std::vector<LaneChoice> lane_choices(const Problem& problem) {
  int first = 0;
  const int rows = ceil_div(met_taps(forward_window(problem.h), first).kernel, kTapRows);
  const int columns = ceil_div(met_taps(forward_window(problem.w), first).kernel, kColumns);
  std::vector<LaneChoice> all, best;
  for (int w = 1; w <= std::min(columns, 32); ++w) {
    for (int h = 1; h <= std::min(rows, 32 / w); ++h) {
      const Lanes lanes{h, w};
      const int tiles = ceil_div(rows, h) * ceil_div(columns, w);
      all.push_back({lanes, tiles, static_cast<double>(tiles) / lanes.groups()});
    }
  }
  std::stable_sort(all.begin(), all.end(), [](const LaneChoice& a, const LaneChoice& b) {
    return a.tiles != b.tiles ? a.tiles < b.tiles : a.cost < b.cost;
  });
  for (const LaneChoice& choice : all) {
    if (best.empty() || choice.cost < best.back().cost) best.push_back(choice);
  }
  return best;
}

// Of a lane's four rows, how many meet the output gradient on average. Those that none of a warp's
// lanes does are left out.
double rows_met(const SumGeometry& g) {
  const int step = std::max(1, g.h.source / 64);
  int met = 0, seen = 0;
  for (int tile = 0; tile < g.tiles_h; ++tile) {
    for (int h = 0; h < g.h.source; h += step, ++seen) {
      for (int r = 0; r < kTapRows; ++r) {
        const int first = tile * g.lanes.tile_h() + r * g.lanes.rows;
        const int at = h + g.h.pad - first;  // of the first lane, and the others' before it
        met += at >= 0 && at - g.lanes.rows + 1 < g.h.result ? 1 : 0;
      }
    }
  }
  return static_cast<double>(met) / seen;
}

struct Estimate {
  const Problem& problem;
  const Arch& arch;
  const SumGeometry& g;
  double met;

  double operator()(std::int64_t slices, int resident) const {
    const double blocks = static_cast<double>(problem.channels * slices * g.tiles());
    const double units = std::ceil(static_cast<double>(g.units) / static_cast<double>(slices));
    const int image_rows = g.images * g.rows;
    const double turns = ceil_div(image_rows, kWarps * g.lanes.groups());  // of a warp
    const double row = g.steps * met * kStepCycles + kRowCycles;
    const double quads = g.images * (static_cast<double>(g.rows) * g.source_pitch +
                                     static_cast<double>(g.result_rows) * g.result_pitch);
    const double load = std::ceil(quads / (4 * kThreads)) * kLoadCycles + 800;
    // Of a block, if it has the multiprocessor for itself, and what it takes of the four
    // schedulers.
    const double alone = units * (turns * row * kWarps / 4 * kAlone + load) + kFlushCycles;
    const double work = units * (turns * row * kWarps / 4 + 0.15 * load) + 0.3 * kFlushCycles;
    const double each = std::ceil(blocks / arch.multiprocessors);  // of a multiprocessor
    const double compute = std::max(each * work, std::ceil(each / resident) * alone) / kCyclesPerUs;
    const double bytes = static_cast<double>(size_of(problem.dtype)) * g.tiles() *
                         static_cast<double>(problem.input_numel() + problem.output_numel());
    const double memory = bytes / (kBytesPerUs * arch.multiprocessors / 132);
    return kLaunchUs + (slices > 1 ? kSumUs : 0) + std::max(compute, memory) +
           0.2 * std::min(compute, memory);
  }
};

void consider(SumPlan& best, const Problem& problem, const Arch& arch, const Tiling& tiling) {
  const SumGeometry g = sum_geometry(problem, tiling);
  if (g.shared_bytes > shared_per_block(arch) || g.units >= std::int64_t{1} << 31) return;
  const int resident = std::min(blocks_that_fit(arch, g.shared_bytes), kResident);
  const Estimate estimate{problem, arch, g, rows_met(g)};
  const std::int64_t bytes_of_slice = problem.channels * problem.sums() * 4;
  const std::int64_t enough = std::int64_t{6} * kResident * arch.multiprocessors;  // blocks
  for (std::int64_t slices = 1; slices <= std::max<std::int64_t>(g.units, 1);
       slices += std::max<std::int64_t>(slices / 4, 1)) {
    if (slices > 1 && slices * bytes_of_slice > kWorkspaceBytes) break;
    const double us = estimate(slices, resident);
    if (best.us < 0 || us < best.us) best = {us, tiling, slices};
    if (problem.channels * g.tiles() * slices >= enough) break;
  }
}

}  // namespace

SumPlan plan_sums(const Problem& problem, const Arch& arch) {
  SumPlan best;
  const int rows = static_cast<int>(problem.h.input);
  const int columns = static_cast<int>(problem.w.output());
  const std::vector<LaneChoice> choices = lane_choices(problem);
  // As few parts of the columns as any rows of them fit with.
  for (int parts = 1; best.us < 0 && parts <= 2 * ceil_div(columns, kColumns); parts *= 2) {
    const int width = round_up(ceil_div(columns, parts), kColumns);
    for (const LaneChoice& choice : choices) {
      for (const int images : {1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64}) {
        if (images > problem.batch && images > 1) break;
        for (int bands = 1; bands <= (images > 1 ? 1 : rows); bands += std::max(bands / 2, 1)) {
          consider(best, problem, arch,
                   {.images = images,
                    .rows = ceil_div(rows, bands),
                    .stages = 1,
                    .threads = kThreads,
                    .tile_rows = choice.lanes.rows,
                    .columns = choice.lanes.columns,
                    .width = width,
                    .places = 0});
        }
      }
    }
  }
  return best;
}

}  // namespace dwconv::direct
