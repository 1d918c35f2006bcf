#include "ring.h"

#include <cmath>
#include <optional>

#include "family.h"
#include "ring_tiles.h"

namespace dwconv {
namespace ring {

Geometry units_of(const Problem& problem, const Tiles& tiles, const Shape& shape) {
  Geometry g;
  g.h = window_of(problem, problem.h);
  g.w = window_of(problem, problem.w);
  g.shape = shape;
  g.width = tiles.width;
  g.groups = static_cast<int>((problem.channels + g.width - 1) / g.width);
  g.vectors = g.width / g.shape.channels;
  g.images = tiles.images;
  g.image_blocks = static_cast<int>((problem.batch + g.images - 1) / g.images);
  g.row_classes = std::min(g.h.dilation, g.h.result);
  g.column_classes = std::min(g.w.dilation, g.w.result);
  const int results = ceil_div(g.h.result, g.row_classes);
  const int columns = ceil_div(g.w.result, g.column_classes);
  g.strips = tiles.strips;
  g.column_tiles = ceil_div(columns, g.strips * g.shape.columns);
  g.pixels = (g.strips * g.shape.columns - 1) * g.w.stride + g.w.kernel;
  g.band = std::min(tiles.band, results);
  g.bands = ceil_div(results, g.band);
  g.steps = (g.band - 1) * g.h.stride + g.h.kernel;
  if (g.bands == 1 && g.h.dilation == 1) {
    const int last = std::min(g.steps, g.h.pad + g.h.source);
    if (problem.pass == Pass::backward_weight) {  // gradients come, whether there is a row or not
      g.steps = std::max(last, (g.band - 1) * g.h.stride + 1);
    } else {
      g.first_step = std::clamp(g.h.pad, 0, last);
      g.steps = last - g.first_step;
    }
  }
  g.units = static_cast<std::int64_t>(g.image_blocks) * g.row_classes * g.column_classes *
            g.column_tiles * g.bands;
  return g;
}

Geometry geometry(const Problem& problem, const Tiles& tiles) {
  const Filter filter{static_cast<int>(problem.h.kernel), static_cast<int>(problem.w.kernel)};
  Geometry g =
      units_of(problem, tiles,
               shape_of(problem.pass, problem.dtype, filter, static_cast<int>(problem.h.stride)));
  const auto bytes = static_cast<int>(size_of(problem.dtype));
  g.lanes = g.vectors > kLanes ? 2 * kLanes : kLanes;
  g.pixel_bytes = g.lanes * g.shape.channels * bytes;
  const bool weight = problem.pass == Pass::backward_weight;
  g.grad_pixels = weight ? g.strips * g.shape.columns : 0;
  g.grad_at = round_up(g.images * g.pixels * g.pixel_bytes, kBoxAlignment);
  g.stage_bytes = g.grad_at + round_up(g.images * g.grad_pixels * g.pixel_bytes, kBoxAlignment);
  // Filters, or sums of all threads, have the same place before and after.
  const int others = 4 * (weight ? kSumBatch * g.threads() * g.shape.channels
                                 : g.width * static_cast<int>(problem.taps()));
  const int stages = stages_of(problem.pass, filter);
  g.shared_bytes = control_bytes(stages) + std::max(stages * g.stage_bytes, others);
  return g;
}

}  // namespace ring

namespace {

using namespace ring;

// What an H100 gets through, for the choice among tilings and among families. Fitted to 911 timings
// on 500 problems, most of them random: the choice is 3.3 % slower than the best tiling that was
// tried on average. Launch, lines and blocks were then set by hand, so that of 522 problems the
// choice between this family and strip is 3.1 % slower than the better one.
constexpr double kLaunchUs = 6.5;  // with the first rows and the last ones
constexpr double kSumUs = 2.5;     // the kernel that adds the partial sums
constexpr Memory kMemory{.bytes_per_us = 2.7e6, .reread = 0.34, .narrow = 0.07, .partly = 0.29};
constexpr double kIssuePerUs = 5.2e3;  // warp instructions of a multiprocessor, at best
constexpr double kWarps = 13.4;        // that keep its issue slots busy; fewer do so less
constexpr double kWarpsPower = 0.83;   // by this power
constexpr double kStepInstructions = 11;
constexpr double kMoves = 1.76;        // of a weight gradient: a gradient moves on by a row
constexpr double kSmallStepUs = 0.49;  // of one warp alone, and so much more for each instruction
constexpr double kAloneUs = 0.45 / 400;
constexpr double kOutside = 0.52;  // of a step's time, where its row is not there
constexpr double kUnitUs = 0.28;
constexpr double kBlockUs = 0.12;   // of a block's start, which keeps its multiprocessor busy
constexpr double kConflicts = 1.2;  // lanes of different strips meet in the same banks
constexpr double kLine = 128;       // bytes of a line of the L2
// Of pixels that begin within a line: N128 C144 56x56 k3 float32 took 218 us, and 189 in strip.
constexpr double kSplit = 1.12;
constexpr double kPartials = 32;  // bytes that a partial sum costs

}  // namespace

double ring::memory_us(const Problem& problem, const Arch& arch, const Geometry& g,
                       const Memory& memory) {
  const double rate = memory.bytes_per_us * arch.multiprocessors / 132;
  const int source_rows = ceil_div(g.h.source, g.row_classes);
  const int source_columns = ceil_div(g.w.source, g.column_classes);
  const double inside = std::min((g.band - 1) * g.h.stride + g.h.kernel, source_rows);
  const bool backward = problem.pass == Pass::backward_input;
  const auto input = static_cast<double>(problem.input_numel() * size_of(problem.dtype));
  const auto output = static_cast<double>(problem.output_numel() * size_of(problem.dtype));
  const double source_bytes = backward ? output : input;
  const double read = g.bands * inside * g.column_tiles * g.pixels /
                      (static_cast<double>(source_rows) * source_columns);
  const double channels = static_cast<double>(problem.channels) /
                          (static_cast<double>(g.groups) * g.lanes * g.shape.channels);
  const auto bytes_of = [&](std::int64_t count) {
    return static_cast<double>(count * size_of(problem.dtype));
  };
  const double narrow = 1 - std::min(1.0, bytes_of(g.width) / (2 * kLine));
  const bool splits = problem.dtype == DType::float32 && g.groups > 1 &&
                      std::fmod(bytes_of(problem.channels), kLine) != 0;
  const double split = splits ? kSplit : 1;
  return (input + output + source_bytes * memory.reread * std::max(read - 1, 0.0)) / rate *
         (1 + memory.narrow * narrow) * (1 + memory.partly * (1 - channels)) * split;
}

namespace {

// Instructions of a thread for one row.
double step_instructions(const Problem& problem, const Geometry& g) {
  const Shape& s = g.shape;
  const double stride = g.h.stride;
  const double products = static_cast<double>(problem.taps()) * s.columns * s.channels / stride;
  const double load = problem.dtype == DType::float32 ? 1 : 1 + s.channels;
  const double source = ((s.columns - 1) * g.w.stride + g.w.kernel) * load;
  const double other = problem.pass == Pass::backward_weight
                           ? load + kMoves * s.channels * (g.h.kernel / stride - 1)
                           : load + 2;
  const double results = by_phases(problem) ? 4 : 1;
  return kStepInstructions + products + source + results * s.columns * other / stride;
}

// The tiles of a problem with blocks that take them in turn, `resident` of which run at a time on a
// multiprocessor.
Found estimate(const Problem& problem, const Arch& arch, const Tiles& tiles, const Geometry& g,
               int resident) {
  const bool weight = problem.pass == Pass::backward_weight;
  const Turns t(problem, arch, g, resident, kMostProducts);

  const double inside = std::min(g.steps, ceil_div(g.h.source, g.row_classes));
  const double instructions = step_instructions(problem, g);
  const double busy = std::min(1.0, std::pow(t.warps / kWarps, kWarpsPower));
  const double conflicts = g.lanes % g.vectors == 0 ? 1 : kConflicts;
  const double step_us = std::max(conflicts * t.warps * instructions / (kIssuePerUs * busy),
                                  kSmallStepUs + kAloneUs * instructions);
  const double compute =
      t.waves * t.rounds *
      (inside * step_us + (g.steps - inside) * std::max(kOutside * step_us, kSmallStepUs) +
       kUnitUs);

  const double memory = memory_us(problem, arch, g, kMemory);
  const double sums = weight ? kSumUs + t.blocks * g.width * static_cast<double>(problem.sums()) *
                                            kPartials / kMemory.bytes_per_us
                             : 0;
  const double us = kLaunchUs + sums + kBlockUs * t.waves * t.on_one + std::max(memory, compute) +
                    0.08 * std::min(memory, compute);
  return {us, tiles, t.slices};
}

// The tiles with the lowest estimate; us < 0 where none fits.
Found search(const Problem& problem, const Arch& arch) {
  Found best;
  const Filter filter{static_cast<int>(problem.h.kernel), static_cast<int>(problem.w.kernel)};
  const auto consider = [&](const Tiles& tiles) {
    const Geometry g = geometry(problem, tiles);
    if (g.threads() > kMaxThreads || g.pixels * g.w.dilation > kMostPixels) return false;
    if (g.shared_bytes > shared_per_block(arch)) return false;
    const int resident = std::min(
        {resident_blocks(problem.pass, filter, g.shape, static_cast<int>(problem.h.stride)) *
             kMaxThreads / g.threads(),
         most_blocks(arch.compute_capability), blocks_that_fit(arch, g.shared_bytes)});
    const Found found = estimate(problem, arch, tiles, g, resident);
    if (best.us < 0 || found.us < best.us) best = found;
    return true;
  };
  const auto bytes = static_cast<int>(size_of(problem.dtype));
  const Geometry one = geometry(problem, {kCopyBytes / bytes, 1, 1, 1});
  const int most_width = (has_many_lanes(filter) ? 2 : 1) * kLanes * one.shape.channels;
  for_tiles(problem, one, most_width, consider);
  return best;
}

}  // namespace

namespace ring {
namespace {

bool is_compiled(const Axis& h, const Axis& w) {
  for (const Filter& filter : kFilters)
    if (filter.h == h.kernel && filter.w == w.kernel) return true;
  return false;
}

}  // namespace

std::optional<std::string> refuse(const Problem& problem, const Arch& arch) {
  if (!is_sm_90(arch)) return "it needs the copy engine of sm_90";
  const Axis &h = problem.h, &w = problem.w;
  if (problem.multiplier != 1) return "it takes one filter per channel";
  if (!is_compiled(h, w)) return "it is compiled for filters of other sizes";
  if (h.stride != w.stride || h.stride > 2) return "it takes stride 1 or 2, the same on both axes";
  if (w.dilation > kMostStep) {
    return "it takes a dilation of up to " + std::to_string(kMostStep) + " along the width";
  }
  if (by_phases(problem) && std::max(h.dilation, w.dilation) > 1)
    return "its input gradient takes no dilation with stride 2";
  if (padding_holds_results(problem)) return "some results lie wholly in the padding";
  const std::int64_t per_copy = kCopyBytes / size_of(problem.dtype);
  if (problem.channels % per_copy != 0) {
    return "it takes channels that fill 16 bytes";
  }
  // Positions are counted in 32 bits, and the copy engine counts the bytes of an image in 40.
  constexpr std::int64_t kMaxSide = 1 << 15;
  constexpr std::int64_t kMaxImage = std::int64_t{1} << 40;
  const std::int64_t plane = std::max(h.input * w.input, h.output() * w.output());
  if (std::max({h.input, w.input, h.output(), w.output(), h.dilation}) > kMaxSide ||
      problem.channels > 8 * kMaxSide || problem.batch >= std::int64_t{1} << 30 ||
      plane * problem.channels * size_of(problem.dtype) >= kMaxImage) {
    return "images, batch or channels are too large for it";
  }
  return std::nullopt;
}

Plan plan_of(const Kernel& kernel, const Problem& problem, const Geometry& g, std::int64_t slices,
             int stages, double us) {
  Plan plan;
  plan.kernel = &kernel;
  plan.blocks = g.units == 0 ? 0 : slices * g.groups;
  plan.threads = g.threads();
  plan.tiling = {.planes = g.width,
                 .images = g.images,
                 .rows = g.band,
                 .stages = stages,
                 .threads = plan.threads,
                 .tile_rows = 1,
                 .columns = g.strips,
                 .places = 0};
  plan.in_turn = true;
  if (problem.pass == Pass::backward_weight) {
    plan.slices = plan.blocks;
    plan.sums_overlap = true;
    plan.workspace_bytes = partials_of(problem, g, plan.blocks).bytes();
  }
  plan.estimate_us = us;
  return plan;
}

}  // namespace ring

namespace {

// As in strip: a gradient that a unit lacks is a zero that meets an image.
bool spreads_nonfinite(const Problem& problem) { return problem.pass == Pass::backward_weight; }

Answer plan_launch(const Kernel& kernel, const Problem& problem, const Arch& arch) {
  if (auto reason = refuse(problem, arch)) return *std::move(reason);
  const Found best = search(problem, arch);
  if (best.us < 0) return "its rows do not fit the shared memory of the device";
  const Geometry g = geometry(problem, best.tiles);
  if (g.units * g.steps >= std::int64_t{1} << 30)
    return "images, batch or channels are too large for it";
  return plan_of(kernel, problem, g, best.slices, stages_of(problem.pass, {g.h.kernel, g.w.kernel}),
                 best.us);
}

}  // namespace

const FamilyPlanner kRingPlanner{plan_launch, spreads_nonfinite};

}  // namespace dwconv
