#include "direct.h"

#include <cmath>
#include <optional>

#include "direct_wgrad.h"
#include "family.h"
#include "large_filters.h"

namespace dwconv {
namespace {

using namespace direct;

// Cycles of an H100's multiprocessor, by what its kernel's instructions are; of which it gets
// through so many in a microsecond, in the middle of 220 random passes (float32).
constexpr double kLaunchUs = 4;
constexpr double kBytesPerUs = 2.2e6;  // a large copy moves 3.0e6
constexpr double kCyclesPerUs = 1.32e3;
constexpr double kTapCycles = 8.2;   // of a warp, for a row of a thread's results
constexpr double kChunkCycles = 16;  // of 8 taps, or of fewer, beside them
constexpr double kRowCycles = 50;    // of a row of the image, beside its taps
constexpr double kTaskCycles = 300;  // to find a task and store its results
// So much longer do warps take that have a scheduler for themselves, or share it with one other.
constexpr double kAlone = 1.6;
constexpr double kInPairs = 1.15;
constexpr double kLoadCycles = 1100;   // of 4 quads of each thread, that are waited for together
constexpr double kBlockCycles = 2500;  // to start, and to bring the filter

// Of a warp's task on average: rows of the image that it goes over, and rows of the filter that
// those meet, for all of its rows of results.
struct Steps {
  double rows = 0, pairs = 0;
};
Steps steps_of_task(const Geometry& g) {
  const int of_unit = std::max(1, g.tiles * g.images);
  const int span = (std::min(31, g.positions() - 1) / of_unit) * g.tile_rows;  // of a warp's lanes
  const int all = ceil_div(g.h.result, g.tile_rows);
  const int step = std::max(1, all / 32);
  Steps steps;
  int seen = 0;
  for (int group = 0; group < all; group += step, ++seen) {
    const int row = group * g.tile_rows - g.h.pad;
    const int first = std::max(0, -(row + span));
    const int last = std::min(g.h.kernel + g.tile_rows - 1, g.h.source - row);
    for (int r = 0; r < g.tile_rows; ++r)
      steps.pairs += std::max(0, std::min(last, g.h.kernel + r) - std::max(first, r));
    steps.rows += std::max(0, last - first);
  }
  return {steps.rows / seen, steps.pairs / seen};
}

double estimate(const Problem& problem, const Arch& arch, const Geometry& g, int resident) {
  const auto units = static_cast<double>(g.units);
  const Steps steps = steps_of_task(g);
  const double task = steps.pairs * g.w.kernel * kTapCycles +
                      steps.rows * (g.chunks * kChunkCycles + kRowCycles) + kTaskCycles;
  const double tasks = ceil_div(g.positions(), 32);
  const double quads = static_cast<double>(g.images) * g.source_rows * g.row_quads();
  const double taps = static_cast<double>(g.h.kernel) * g.tap_pitch;
  const double load =
      (std::ceil(quads / (4 * kThreads)) + std::ceil(taps / (4 * kThreads))) * kLoadCycles +
      kBlockCycles;
  // Of a block, if it has the multiprocessor for itself, and what it takes of the four schedulers.
  const double alone =
      std::max(std::ceil(tasks / kWarps) * kAlone, std::ceil(tasks / 4) * kInPairs) * task + load;
  const double work = std::ceil(tasks / 4) * task + 0.15 * load;
  const double each = units / arch.multiprocessors;  // of a multiprocessor; the last ones overlap
  const double turns = each <= resident ? std::ceil(each) : each + 0.5;
  const double compute = std::max(turns * work, std::ceil(each / resident) * alone) / kCyclesPerUs;
  const double scale = arch.multiprocessors / 132.0;
  const double bytes = static_cast<double>(size_of(problem.dtype)) *
                       static_cast<double>(problem.input_numel() + problem.output_numel());
  const double memory = bytes / (kBytesPerUs * scale);
  return kLaunchUs + std::max(compute, memory) + 0.2 * std::min(compute, memory);
}

struct Best {
  double us = -1;
  Tiling tiling;
};

void consider(Best& best, const Problem& problem, const Arch& arch, const Tiling& tiling) {
  const Geometry g = geometry(problem, tiling);
  if (g.shared_bytes > shared_per_block(arch) || g.units >= std::int64_t{1} << 31) return;
  const int resident = std::min(blocks_that_fit(arch, g.shared_bytes), kResident);
  const double us = estimate(problem, arch, g, resident);
  if (best.us < 0 || us < best.us) best = {us, tiling};
}

Best search(const Problem& problem, const Arch& arch) {
  Best best;
  const int rows = window_of(problem, problem.h).result;
  const int columns = window_of(problem, problem.w).result;
  // As few parts of the columns as any rows of them fit with, or twice as many.
  int more = 1;
  for (int parts = 1; more >= 0 && parts <= 2 * ceil_div(columns, kColumns); parts *= 2) {
    const int width = round_up(ceil_div(columns, parts), kColumns);
    for (const int tile_rows : kTileRows) {
      for (const int images : {1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 48, 64}) {
        if (images > problem.batch && images > 1) break;
        const int most = ceil_div(rows, tile_rows);
        for (int segments = 1; segments <= most; segments += std::max(segments / 2, 1)) {
          consider(best, problem, arch,
                   {.images = images,
                    .rows = round_up(ceil_div(rows, segments), tile_rows),
                    .stages = 1,
                    .threads = kThreads,
                    .tile_rows = tile_rows,
                    .columns = kColumns,
                    .width = width,
                    .places = 0});
        }
      }
    }
    if (best.us >= 0) --more;
  }
  return best;
}

std::optional<std::string> refuse(const Problem& problem) {
  const Axis &h = problem.h, &w = problem.w;
  if (auto reason = refuse_all_but_plain(problem)) return reason;
  constexpr std::int64_t kMaxSide = 1 << 14;
  if (std::max({h.input, w.input, h.output(), w.output(), h.kernel, w.kernel}) > kMaxSide ||
      std::max({h.pad_before, h.pad_after, w.pad_before, w.pad_after}) > kMaxSide ||
      problem.batch >= std::int64_t{1} << 24 || problem.channels >= std::int64_t{1} << 24) {
    return "images, batch or channels are too large for it";
  }
  return std::nullopt;
}

// A filter's taps are multiplied by what they meet alone, padding included. Gradients of its rows
// and columns are padded to whole tiles, whose zeros meet the image.
bool spreads_nonfinite(const Problem& problem) { return problem.pass == Pass::backward_weight; }

Plan plan_of_sums(const Problem& problem, const Arch& arch) {
  const SumPlan sums = plan_sums(problem, arch);
  return plan_of(sums, problem, arch,
                 problem.channels * sum_geometry(problem, sums.tiling).tiles());
}

Plan plan_of_convolution(const Problem& problem, const Arch& arch) {
  const Best best = search(problem, arch);
  Plan plan;
  plan.estimate_us = best.us;
  if (best.us < 0) return plan;
  plan.blocks = geometry(problem, best.tiling).units;
  plan.tiling = best.tiling;
  return plan;
}

Answer plan_launch(const Kernel& kernel, const Problem& problem, const Arch& arch) {
  if (auto reason = refuse(problem)) return *std::move(reason);
  Plan plan = problem.pass == Pass::backward_weight ? plan_of_sums(problem, arch)
                                                    : plan_of_convolution(problem, arch);
  if (plan.estimate_us < 0) return "its rows do not fit the shared memory of the device";
  if (plan.blocks >= std::int64_t{1} << 31) return "it counts its blocks in 32 bits";
  plan.kernel = &kernel;
  plan.threads = kThreads;
  leave_small_filters(plan, problem);
  return plan;
}

}  // namespace

const FamilyPlanner kDirectPlanner{plan_launch, spreads_nonfinite};

}  // namespace dwconv
