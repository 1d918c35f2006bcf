#include "lines.h"

#include <cmath>
#include <optional>

#include "family.h"
#include "large_filters.h"

namespace dwconv::lines {
namespace {

constexpr int kRowPieces = 8;  // rows of 16 bytes that `ldmatrix` takes from different banks

// Columns of a filter, and before them, that so many products side by side have room for; and of a
// tile where there are several.
constexpr int room_of(int spans) { return 16 * spans - 8; }
constexpr int kTileColumns = 48;

// How a tile's rows of the image lie: it begins `lead` columns before the first that it reads, so
// that wide pieces can be copied, and takes so many products.
void choose_columns(Geometry& g) {
  // Several tiles begin at multiples of 8 columns, with room for any lead.
  g.tiles_w = g.w.kernel <= room_of(kMostSpans) ? 1 : ceil_div(g.w.kernel, kTileColumns);
  g.tile_w = g.tiles_w == 1 ? g.w.kernel : round_up(ceil_div(g.w.kernel, g.tiles_w), 8);
  g.tiles_w = ceil_div(g.w.kernel, g.tile_w);
  g.shape.spans = kMostSpans + 1;
  // Rows of an odd number of elements are copied by fours of bytes as well, and then moved.
  for (int bytes = std::max(piece_bytes(g.w.source), kWordBytes); bytes >= kWordBytes; bytes /= 2) {
    const int columns = bytes / 2;
    const int lead = ((-g.w.pad % columns) + columns) % columns;
    const int spans = ceil_div(lead + g.tile_w + 7, 16);
    if (spans >= g.shape.spans) continue;
    g.shape.spans = spans;
    g.lead = lead;
    g.source_bytes = bytes;
  }
}

// What a warp takes for 16 rows and a row of the filter: its products, and registers that are
// filled for them. Of the same fit as the constants below.
double step_cycles(const Shape& shape) {
  return 7.0 * shape.blocks * shape.spans + 2.5 * shape.image_blocks() + 8.8;
}

// Blocks of columns at a time.
void choose_blocks(Geometry& g) {
  const int blocks = ceil_div(g.w.result, 8);
  double least = 0;
  for (const int some : kBlocks) {
    if (g.shape.spans == kMostSpans && some == kMostBlocks) continue;
    const int groups = ceil_div(blocks, some);
    const double cycles = groups * step_cycles({g.shape.spans, some});
    if (least > 0 && cycles > least) continue;
    least = cycles;
    g.shape.blocks = some;
    g.groups = groups;
  }
}

// Bytes of a row, or of an image: so that 8 neighbouring positions lie in different banks.
int row_pitch(int blocks) { return 16 * (blocks % 2 == 0 ? blocks + 1 : blocks); }
int image_pitch(int pitch, int rows, int images) {
  int pieces = pitch / 16 * rows;
  const int wanted = kRowPieces / std::min(images, kRowPieces) * (pitch / 16) % kRowPieces;
  while (images > 1 && pieces % kRowPieces != wanted)
    ++pieces;
  return 16 * pieces;
}

}  // namespace

Geometry geometry(const Problem& problem, const Tiling& tiling) {
  Geometry g;
  g.h = met_taps(forward_window(problem.h), g.first_tap_row);
  g.w = met_taps(forward_window(problem.w), g.first_tap);
  choose_columns(g);
  choose_blocks(g);
  const int most_rows = 2 * kWarps * g.shape.half();
  g.tiles_h = ceil_div(g.h.kernel, most_rows);
  g.tile_h = ceil_div(g.h.kernel, g.tiles_h);
  while (2 * g.row_groups * g.shape.half() < g.tile_h)
    g.row_groups *= 2;
  g.half_rows = std::min(round_up(ceil_div(g.tile_h, 2 * g.row_groups), 2), g.shape.half());
  g.splits = kWarps / g.row_groups;
  g.half_tile = g.row_groups * g.half_rows;

  while (g.images < tiling.images) {
    g.images *= 2;
    ++g.image_bits;
  }
  g.rows = std::min(tiling.rows, g.h.result);
  g.bands = ceil_div(g.h.result, g.rows);
  g.source_rows = std::min(g.h.source, g.rows + g.tile_h - 1);
  // Words have an element more than an odd row.
  g.source_pitch = row_pitch(g.shape.blocks * g.groups + 2 * g.shape.spans - 1 + g.w.source % 2);
  g.result_pitch = row_pitch(g.shape.blocks * g.groups);
  g.source_image = image_pitch(g.source_pitch, g.source_rows, g.images);
  g.result_image = image_pitch(g.result_pitch, g.rows, g.images);
  g.step_rows = kStepRows >> g.image_bits;
  g.least_row = 2 - g.step_rows - g.half_rows;
  g.turn_rows = g.splits * g.step_rows;
  g.turn_source = g.turn_rows * g.source_pitch;
  g.turn_result = g.turn_rows * g.result_pitch;
  g.half_bytes = g.half_tile * g.source_pitch;
  g.result_bytes = 16 * g.shape.blocks * g.groups;
  g.result_at = g.images * g.source_image;
  g.stage_bytes = g.result_at + g.images * g.result_image;
  g.sums_at = 16 * (g.shape.image_blocks() + 1);
  g.scratch_at = g.sums_at + round_up(kWarps * 2 * g.half_rows * g.tile_w * 4, 16);
  g.stages_at = g.scratch_at + kWarps * g.shape.scratch() * 4;
  g.shared_bytes = g.stages_at + tiling.stages * g.stage_bytes;
  g.units = (problem.batch + g.images - 1) / g.images * g.bands;
  return g;
}

}  // namespace dwconv::lines

namespace dwconv {
namespace {

using namespace lines;

// What an H100 gets through: fitted to the times of 185 random problems (float16) with tilings that
// another estimate had chosen, on an H200, whose multiprocessors are the same. They are met within
// 14 %; with what the other families of large filters expect, the choice among them takes 1.2 %
// longer than the best.
constexpr double kLaunchUs = 8.6;
constexpr double kSumUs = 5;              // the kernel that adds the partial sums
constexpr double kBytesPerUs = 2.4e6;     // a large copy moves 3.0e6
constexpr double kCyclesPerUs = 1.75e3;   // of a multiprocessor
constexpr double kUnitCycles = 5800;      // of a block
constexpr double kImageCycles = 243;      // of a unit
constexpr double kPieceCycles = 0.095;    // of a piece of a row, to be copied
constexpr double kMovedRowCycles = 16.6;  // of a row of an odd number of elements
constexpr double kBlockCycles = 3000;

// Steps of a warp for a unit: of 16 positions and a row of the filter, that meet.
double steps_of_unit(const Geometry& g) {
  const double rows_of_step = std::max(1.0, static_cast<double>(kStepRows) / g.images);
  double met = 0;
  for (int tap = 0; tap < g.h.kernel; ++tap) {
    const int first = std::max(0, g.h.pad - tap);
    const int last = std::min(g.h.result, g.h.source + g.h.pad - tap);
    met += std::min(static_cast<double>(g.h.result), last - first + rows_of_step - 1);
  }
  const double share = met / g.h.kernel / g.h.result;
  return ceil_div(g.positions(), kStepRows) * share * g.tile_h / g.row_groups;
}

double estimate(const Problem& problem, const Arch& arch, const Geometry& g, std::int64_t slices) {
  const double blocks = static_cast<double>(problem.channels * slices * g.tiles());
  const double all = kResident * arch.multiprocessors;
  const double waves = blocks <= all ? 1 : blocks / all + 0.3;
  const double units = std::ceil(static_cast<double>(g.units) / static_cast<double>(slices));
  const double resident = std::min(std::max(blocks, 1.0), all) / arch.multiprocessors;
  // Two warps of a block share a scheduler.
  const double compute_unit = std::ceil(steps_of_unit(g) / g.splits) * g.groups *
                              step_cycles(g.shape) * (kWarps / 4) * std::max(1.0, resident);
  const auto pieces = [](int columns, int bytes) { return 2.0 * columns / bytes * kPieceCycles; };
  const auto row = [&](int columns, int bytes) {
    return pieces(columns, bytes) + columns % 2 * kMovedRowCycles;
  };
  const int result_bytes = std::max(piece_bytes(g.w.result), kWordBytes);
  const double copies = g.images *
                        (row(g.w.source, g.source_bytes) * g.source_rows +
                         row(g.w.result, result_bytes) * g.rows + kImageCycles) *
                        std::max(1.0, resident);
  const double compute =
      waves * (kBlockCycles + units * (kUnitCycles + compute_unit + copies)) / kCyclesPerUs;
  const double bytes = 2.0 * static_cast<double>(problem.input_numel() + problem.output_numel());
  const double memory = bytes / (kBytesPerUs * arch.multiprocessors / 132);
  return kLaunchUs + (slices > 1 ? kSumUs : 0) + std::max(compute, memory) +
         0.25 * std::min(compute, memory);
}

std::optional<std::string> refuse(const Problem& problem, const Arch& arch) {
  if (arch.compute_capability < 80) return "it needs the tensor cores of sm_80 or newer";
  if (auto reason = refuse_all_but_plain(problem)) return reason;
  if (auto reason = refuse_too_large(problem)) return reason;
  if (problem.channels * geometry(problem, {}).tiles() >= std::int64_t{1} << 24) {
    return "channels and tiles of their filters are too many for it";
  }
  return std::nullopt;
}

// Zeros around an image meet the output gradient, and those around that the image.
bool spreads_nonfinite(const Problem&) { return true; }

Answer plan_launch(const Kernel& kernel, const Problem& problem, const Arch& arch) {
  if (auto reason = refuse(problem, arch)) return *std::move(reason);
  const int room = shared_per_multiprocessor(arch) / kResident - shared_reserve(arch);
  const UnitChoice choice{.most_images = kStepRows,
                          .rows = static_cast<int>(problem.h.output()),
                          .threads = kThreads,
                          .resident = kResident};
  const SumPlan sums = plan_sums(
      problem, arch, choice, geometry,
      [&](const Geometry& g) { return g.shared_bytes <= room && g.unit_steps() <= kMostSteps; },
      [&](const Geometry& g, std::int64_t slices) { return estimate(problem, arch, g, slices); });
  if (sums.us < 0) return "its rows do not fit the shared memory of the device";
  Plan plan = plan_of(sums, problem, arch, problem.channels * geometry(problem, {}).tiles());
  plan.kernel = &kernel;
  plan.threads = kThreads;
  leave_small_filters(plan, problem);
  return plan;
}

}  // namespace

const FamilyPlanner kLinesPlanner{plan_launch, spreads_nonfinite};

}  // namespace dwconv
