#include "hankel.h"

#include <algorithm>
#include <cmath>

#include "family.h"
#include "large_filters.h"
#include "rows.h"

namespace dwconv {
namespace hankel {
namespace {

// Rows of the image that a tile of the filter takes to results.
int rows_of_tile(const Window& h, const Tile& tile) {
  return std::min(h.source, h.result + tile.rows * kTileH - 1);
}

// The tile that takes the least time for a filter: each of its own brings its rows once more, which
// takes as long as so many products.
Tile choose_tile(const Window& h, const Window& w) {
  constexpr double row_products = 2.5;
  const auto cost = [&](const Tile& tile) {
    const double tiles = static_cast<double>(ceil_div(w.kernel, tile.columns * kStep)) *
                         ceil_div(h.kernel, tile.rows * kTileH);
    return tiles * rows_of_tile(h, tile) * (tile.columns * tile.rows + row_products);
  };
  return *std::ranges::min_element(kTiles, {}, cost);
}

// More than any device has counts as so much, so that sums of a few still fit 32 bits.
int bytes_of(int rows, int pitch) {
  constexpr std::int64_t too_much = 1 << 22;
  return static_cast<int>(std::min(std::int64_t{rows} * pitch, too_much));
}

// Rows as the copy engine brings them: as wide as they are read, those of the output gradient an
// odd number of 16 bytes. Of a row's columns for the last product, 8 may not be needed.
void place_boxes(Geometry& g) {
  const int columns = g.steps() * kStep - (g.half() ? kStep / 2 : 0);
  g.result_pitch = 2 * (round_up(columns, 16) - 8) + (columns % 16 == 0 ? 32 : 0);
  g.source_pitch = 2 * round_up(columns + g.shape.tile_w() - 1 + 7, 8);
  g.source_image_bytes = bytes_of(g.source_rows, g.source_pitch);
  g.result_image_bytes = bytes_of(g.result_rows, g.result_pitch);
  g.result_at = round_up(g.images * g.source_image_bytes, rows::kBoxAlignment);
  g.stage_bytes = g.result_at + round_up(g.images * g.result_image_bytes, rows::kBoxAlignment);
  g.stages_at = rows::control_bytes(kBoxStages);
}

// As they lie in memory; those of the output gradient are laid out, each an odd number of 16 bytes.
void place_runs(Geometry& g) {
  g.source_pitch = 2 * g.w.source;
  // Lanes read up to 12 bytes beyond a run.
  g.source_image_bytes = run_bytes(std::int64_t{g.source_rows} * g.w.source, 2) + 16;
  g.run_bytes = run_bytes(std::int64_t{g.result_rows} * g.w.result, 2) + 16;
  g.result_at = g.images * g.source_image_bytes;
  g.stage_bytes = g.result_at + g.images * g.run_bytes;
  g.stages_at = kRunsBefore;
  g.result_pitch = 2 * g.steps() * kStep + 16;
  g.result_image_bytes = bytes_of(g.result_rows, g.result_pitch);
}

}  // namespace

Geometry geometry(const Problem& problem, const Tiling& tiling) {
  Geometry g;
  g.h = forward_window(problem.h);
  g.w = forward_window(problem.w);
  const Tile tile = choose_tile(g.h, g.w);
  g.shape = {.columns = tile.columns, .rows = tile.rows};
  g.tiles_w = ceil_div(g.w.kernel, g.shape.tile_w());
  g.tiles_h = ceil_div(g.h.kernel, g.shape.tile_h());
  g.images = tiling.images;
  g.rows = std::min(tiling.rows, g.h.source);
  g.bands = ceil_div(g.h.source, g.rows);
  g.source_rows = std::min(g.rows, rows_of_tile(g.h, tile));
  g.result_rows = std::min(g.h.result, g.rows + g.shape.tile_h() - 1);
  g.boxes = tiling.served;
  // A box has room for the columns that so many products see.
  const int at_once = most_at_once(tile) * kStep;
  const int most = (rows::kMostPixels - g.shape.tile_w() - kStep) / at_once * at_once;
  g.spans = g.boxes ? ceil_div(g.w.result, most) : 1;
  g.span = g.spans == 1 ? g.w.result : round_up(ceil_div(g.w.result, g.spans), kStep);
  const int steps = ceil_div(g.span, kStep);
  g.chunks = ceil_div(steps, most_at_once(tile));
  g.shape.steps = std::max(ceil_div(steps, g.chunks), kFewestAtOnce);
  g.boxes ? place_boxes(g) : place_runs(g);
  g.gradients_at = g.stages_at + tiling.stages * g.stage_bytes;
  g.zeros_at = g.gradients_at + (g.boxes ? 0 : kRunStages * g.images * g.result_image_bytes);
  g.copies_at = round_up(g.zeros_at + 2 * g.shape.steps * kStep, 16);
  g.sums_at = g.copies_at + kWarps * kCopiesBytes;
  g.shared_bytes = g.sums_at + round_up(kWarps * sums_of(g.shape) * 4, 16);
  g.units = (problem.batch + g.images - 1) / g.images * g.bands * g.spans;
  return g;
}

}  // namespace hankel

namespace {

using namespace hankel;

// What an H100 gets through: fitted to 1,841 timings of 144 problems (float16), which are met
// within 11 %; the launch that is chosen takes 1.3 % longer than the best.
constexpr double kLaunchUs = 6.9;
constexpr double kSumUs = 2;             // the kernel that adds the partial sums
constexpr double kPartialUs = 2e-5;      // of a partial sum
constexpr double kBytesPerUs = 3.25e6;   // a large copy moves 3.0e6
constexpr double kCyclesPerUs = 1.75e3;  // of a multiprocessor, and of each quarter:
constexpr double kProductCycles = 5;     // of a product
constexpr double kHalfProductCycles = 3.3;
constexpr double kRowCycles = 25;       // of a row's columns that are multiplied at once
constexpr double kOperandCycles = 1.4;  // of each of their operands
constexpr double kColumnsCycles = 83;   // of an image's
constexpr double kUnitCycles = 145;     // of a warp
constexpr double kLayingCycles = 176;   // of a warp, where it lays rows out,
constexpr double kLaidRowCycles = 22;   // and of 128 columns of a row
constexpr double kBlockCycles = 1370;

bool are_boxes(const Geometry& g) {
  const int most =
      std::max({g.source_pitch / 2, g.result_pitch / 2, g.source_rows, g.result_rows, g.images});
  return most <= rows::kMostPixels;
}

// What the blocks of a multiprocessor take, in times of one that shares it with another: alone it
// is not twice as fast. Where there are more than a few, they are dealt out more evenly. Fitted
// with the estimates.
double turns(double blocks, int multiprocessors, int resident) {
  constexpr double alone = 1.23;
  constexpr double few = 8;
  constexpr double tail = 0.64;
  double on_one = blocks / multiprocessors;
  on_one = on_one <= few ? std::ceil(on_one) : on_one + tail;
  if (resident == 1) return on_one * alone;
  const double together = std::floor(on_one / resident) * resident;
  const double rest = on_one - together;
  return together + (rest <= 1 ? rest * alone : rest);
}

double estimate(const Problem& problem, const Arch& arch, const Geometry& g, int resident,
                std::int64_t slices) {
  const double blocks = static_cast<double>(problem.channels * slices * g.tiles());
  const double units = std::ceil(static_cast<double>(g.units) / static_cast<double>(slices));
  const Tile tile{g.shape.columns, g.shape.rows};
  const double rows = static_cast<double>(g.images) * rows_of_tile(g.h, tile) / g.bands;
  const double row =
      tile.columns * tile.rows *
          ((g.steps() - 1) * kProductCycles + (g.half() ? kHalfProductCycles : kProductCycles)) +
      g.chunks * (kRowCycles + kOperandCycles * (g.shape.columns + g.shape.steps - 1));
  double unit = rows * row + kWarps * (kUnitCycles + g.images * g.chunks * kColumnsCycles);
  if (!g.boxes) {
    const int parts = ceil_div(g.steps() * kStep, 128);
    unit += kWarps * kLayingCycles + g.images * g.result_rows * parts * kLaidRowCycles;
  }
  const double compute = turns(blocks, arch.multiprocessors, resident) *
                         (kBlockCycles + units * unit / 4) / kCyclesPerUs;
  const double bytes = 2.0 * static_cast<double>(problem.input_numel() + problem.output_numel());
  const double memory = bytes / (kBytesPerUs * arch.multiprocessors / 132);
  const double partials = static_cast<double>(problem.channels * slices * problem.taps());
  return kLaunchUs + (slices > 1 ? kSumUs + kPartialUs * partials : 0) + compute + memory;
}

SumPlan search(const Problem& problem, const Arch& arch) {
  const bool boxes = is_sm_90(arch) && problem.w.input % 8 == 0 && problem.w.output() % 8 == 0;
  SumPlan best;
  // Larger units, or more of them at a time.
  for (int resident = 1; resident <= kResident; ++resident) {
    const int room = shared_per_multiprocessor(arch) / resident - shared_reserve(arch);
    const auto plan = [&](bool served) {
      const UnitChoice choice{.most_images = 8,
                              .rows = static_cast<int>(problem.h.input),
                              .threads = kThreads,
                              .resident = resident,
                              .stages = served ? kBoxStages : kRunStages,
                              .most_bands = 1024,
                              .served = served};
      return dwconv::plan_sums(
          problem, arch, choice, geometry,
          [&](const Geometry& g) {
            return g.shared_bytes <= room && g.units < std::int64_t{1} << 31 &&
                   (!served || are_boxes(g));
          },
          [&](const Geometry& g, std::int64_t slices) {
            return estimate(problem, arch, g, resident, slices);
          });
    };
    for (const bool served : {true, false}) {
      if (served && !boxes) continue;
      const SumPlan found = plan(served);
      if (found.us >= 0 && (best.us < 0 || found.us < best.us)) best = found;
    }
  }
  return best;
}

std::optional<std::string> refuse(const Problem& problem, const Arch& arch) {
  if (arch.compute_capability < 80) return "it needs the tensor cores of sm_80 or newer";
  if (auto reason = refuse_all_but_plain(problem)) return reason;
  if (auto reason = refuse_too_large(problem)) return reason;
  const bool many = problem.channels * geometry(problem, {}).tiles() >= std::int64_t{1} << 24;
  if (many) return "channels and tiles of their filters are too many for it";
  return std::nullopt;
}

// The zeros around an image meet numbers of the output gradient.
bool spreads_nonfinite(const Problem&) { return true; }

Answer plan_launch(const Kernel& kernel, const Problem& problem, const Arch& arch) {
  if (auto reason = refuse(problem, arch)) return *std::move(reason);
  const SumPlan best = search(problem, arch);
  if (best.us < 0) return "its rows do not fit the shared memory of the device";
  const int tiles = geometry(problem, best.tiling).tiles();
  Plan plan = plan_of(best, problem, arch, problem.channels * tiles);
  plan.threads = kThreads;
  plan.kernel = &kernel;
  leave_small_filters(plan, problem);
  return plan;
}

}  // namespace

const FamilyPlanner kHankelPlanner{plan_launch, spreads_nonfinite};

}  // namespace dwconv
