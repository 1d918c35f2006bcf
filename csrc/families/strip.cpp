#include "strip.h"

#include <cmath>
#include <optional>

#include "family.h"

namespace dwconv {
namespace strip {

Geometry geometry(const Problem& problem, int width, int threads, int rows) {
  Geometry g;
  const bool weight = problem.pass == Pass::backward_weight;
  const auto kernel_h = static_cast<int>(problem.h.kernel);
  const auto kernel_w = static_cast<int>(problem.w.kernel);
  const auto stride = static_cast<int>(problem.h.stride);
  g.pair = problem.channels % 2 == 0 && has_pairs(problem.pass, kernel_w);
  g.h = window_of(problem, problem.h);
  g.w = window_of(problem, problem.w);
  if (by_phases(problem)) {
    g.shape = kPhaseShape;
  } else if (weight) {
    g.shape = sum_shape(kernel_h, kernel_w, stride, g.pair);
    g.roles = ceil_div(kernel_h, g.shape.filter_rows);
  } else {
    g.shape = convolution_shape(kernel_w, stride, g.pair, rows);
  }
  g.width = width;
  g.vectors = width / (g.pair ? 2 : 1);
  g.groups = static_cast<int>((problem.channels + width - 1) / width);
  g.slots = threads / (g.roles * g.vectors);
  g.row_classes = std::min(g.h.dilation, g.h.result);
  g.column_classes = std::min(g.w.dilation, g.w.result);
  const auto tiles = [](int results, int classes, int of_tile) {
    return ceil_div(ceil_div(results, classes), of_tile);
  };
  g.row_tiles = tiles(g.h.result, g.row_classes, g.shape.rows);
  g.strips = tiles(g.w.result, g.column_classes, g.shape.columns);
  g.items = problem.batch * g.row_classes * g.row_tiles * g.column_classes * g.strips;
  // Filters and biases of the block's channels; or sums of its threads.
  const int filters = (kernel_h * kernel_w + 1) * width;
  g.shared_bytes = 4 * (weight ? kSumBatch * g.threads() * (g.pair ? 2 : 1) : filters);
  return g;
}

}  // namespace strip

namespace {

using namespace strip;

// What an H100 gets through, fitted to 1,900 forward passes and input gradients of 450 random and
// 18 listed problems, with tiles of both heights: these times are met within 14 %, and the choice
// of a height costs 0.9 % on average.
constexpr double kLaunchUs = 5.5;      // an empty kernel takes 3.5
constexpr double kFiltersUs = 0.8;     // of a block, until a batch of filters has come
constexpr double kSumUs = 4.2;         // the kernel that adds the partial sums
constexpr double kBytesPerUs = 2.3e6;  // a large copy moves 3.0e6
constexpr double kIssuePerUs = 4.0e3;  // warp instructions of a multiprocessor
constexpr double kSumsPerUs = 3.8e3;   // of a weight gradient
constexpr double kPartialBytes = 40;   // of one of its sums, which count as so many
constexpr double kTileInstructions = 120;
// Of the memory's time, with low tiles: more of them are under way. But they read more rows twice,
// and those of images as large as an L2 have left it: N64 C128 256x512 k3 float32 took 4,870 us
// with them, and 3,830 with others.
constexpr double kLow = 0.8;
constexpr double kLowOfLarge = 1.2;
constexpr double kLargeBytes = 25e6;
// N128 C144 56x56 k5 stride 2 float32 takes 138 us, ring 129.
constexpr double kStrided = 1.22;
// By phases in float32: N128 C96 112x112 k3 took 281 where 338 were expected.
constexpr double kPhases = 0.87;
// Of a block's channels that are fewer bytes than this: N16 C64 512x512 k3 float32 took 1,059 us
// with 16 channels, 845 with 32 and 810 with 64.
constexpr double kWideBytes = 256;
constexpr double kNarrow = 0.35;

// Instructions of a thread for one tile.
double tile_instructions(const Problem& problem, const Geometry& g) {
  const double channels = g.pair ? 2 : 1;
  const double load = 2.5 + (problem.dtype == DType::float32 ? 0 : channels);
  const Shape& s = g.shape;
  if (by_phases(problem)) {
    const double rows = g.h.kernel * (s.rows + 1) / 2.0;
    return kTileInstructions + rows * ((s.columns + g.w.kernel - 1) * load + 8) +
           static_cast<double>(problem.taps()) * (s.rows * s.columns * channels + 1) +
           4 * s.rows * s.columns * 4;
  }
  const double elements = (s.columns - 1) * g.w.stride + g.w.kernel;
  const bool weight = problem.pass == Pass::backward_weight;
  const double passes = weight ? 1 : std::ceil(static_cast<double>(g.h.kernel) / s.filter_rows);
  const double rows = passes * ((s.rows - 1) * g.h.stride + s.filter_rows);
  const double taps = (weight ? s.filter_rows : g.h.kernel) * static_cast<double>(g.w.kernel);
  return kTileInstructions + rows * (elements * load + 8) +
         taps * (s.rows * s.columns * channels + 1) + 4.0 * s.rows * s.columns;
}

// The share of the rows under a filter that the image has. Of the work, tiles leave out about its
// root: what their rows have in common they read together.
double rows_inside(const Axis& h) {
  double inside = 0;
  for (std::int64_t tap = 0; tap < h.kernel; ++tap) {
    const std::int64_t shift = h.pad_before - tap * h.dilation;
    const std::int64_t first = std::max<std::int64_t>(0, (shift + h.stride - 1) / h.stride);
    const std::int64_t room = h.input - 1 + shift;
    const std::int64_t end = room < 0 ? 0 : std::min(h.output(), room / h.stride + 1);
    inside += static_cast<double>(std::max<std::int64_t>(0, end - first));
  }
  return inside / static_cast<double>(h.output() * h.kernel);
}

struct Block {
  double us = -1;
  int width = 0, threads = 0, rows = 0;
  std::int64_t slices = 0;
};

// us < 0 where it does not fit.
Block estimate(const Problem& problem, const Arch& arch, int width, int threads, int rows) {
  const bool weight = problem.pass == Pass::backward_weight;
  const Geometry g = geometry(problem, width, threads, rows);
  if (g.slots == 0 || g.shared_bytes > kMostShared) return {};
  const int resident_threads =
      most_threads(problem.pass) *
      resident_blocks(problem.pass, static_cast<int>(problem.w.kernel), g.pair);
  const int resident =
      std::min({resident_threads / g.threads(), most_blocks(arch.compute_capability),
                blocks_that_fit(arch, g.shared_bytes)});
  const std::int64_t all = static_cast<std::int64_t>(resident) * arch.multiprocessors;
  const std::int64_t rounds_at_least = (g.items + g.slots - 1) / g.slots;
  const double products = static_cast<double>(rounds_at_least) * g.shape.rows * g.shape.columns;
  const auto exact = weight ? static_cast<std::int64_t>(std::ceil(products / kMostProducts)) : 1;
  const std::int64_t slices = std::clamp<std::int64_t>(std::max(all / g.groups, exact), 1,
                                                       std::max<std::int64_t>(rounds_at_least, 1));
  const std::int64_t blocks = slices * g.groups;
  const std::int64_t share = (g.items + slices - 1) / slices;
  const double rounds = static_cast<double>((share + g.slots - 1) / g.slots);
  const double waves = std::ceil(static_cast<double>(blocks) / static_cast<double>(all));
  const double on_one =
      std::min<double>(resident, std::ceil(static_cast<double>(blocks) / arch.multiprocessors));
  const double warps = on_one * g.threads() / 32;
  // Few warps do not keep the issue slots busy.
  const double busy = std::min(1.0, std::pow(warps / 16, 0.6));
  const double inside = by_phases(problem) ? 1 : std::sqrt(rows_inside(problem.h));
  const double compute = waves * rounds * warps * inside * tile_instructions(problem, g) /
                         ((weight ? kSumsPerUs : kIssuePerUs) * busy);
  const double rate = kBytesPerUs * arch.multiprocessors / 132;
  const auto element_bytes = static_cast<double>(size_of(problem.dtype));
  const auto moved =
      static_cast<double>(problem.input_numel() + problem.output_numel()) * element_bytes;
  const double narrow = 1 - std::min(1.0, width * element_bytes / kWideBytes);
  double memory =
      moved * (1 + kNarrow * narrow) / (rate * std::min(1.0, std::pow(warps / 12, 0.5)));
  if (rows == kLowRows) {
    const auto image = static_cast<double>(problem.channels * problem.h.input * problem.w.input);
    const bool large = image * element_bytes > kLargeBytes;
    memory *= large ? kLowOfLarge : kLow;
  }
  double us = kLaunchUs + std::max(memory, compute) + 0.15 * std::min(memory, compute);
  if (weight) {
    us += kSumUs + static_cast<double>(blocks * g.width * problem.sums()) * kPartialBytes / rate;
  } else {
    us += kFiltersUs * ceil_div(static_cast<int>(problem.taps()) * width, kFilterBatch * threads);
  }
  if (problem.pass == Pass::forward && problem.h.stride == 2) us *= kStrided;
  if (by_phases(problem) && problem.dtype == DType::float32) us *= kPhases;
  return {us, width, g.threads(), g.shape.rows, slices};
}

// The block with the lowest estimate.
Block choose_block(const Problem& problem, const Arch& arch) {
  Block best;
  const bool convolution = problem.pass != Pass::backward_weight && !by_phases(problem);
  const bool low = convolution;
  const bool high = !convolution || has_high_tiles(static_cast<int>(problem.w.kernel),
                                                   static_cast<int>(problem.h.stride));
  for (const int most : {16, 32, 48, 64, 96, 128, 192, 256}) {
    const std::int64_t groups = (problem.channels + most - 1) / most;
    const auto even = static_cast<int>((problem.channels + groups - 1) / groups);
    const int width = problem.channels % 2 == 0 ? round_up(even, 2) : even;
    for (const int threads : {96, 128, 192, 256}) {
      if (threads > most_threads(problem.pass)) continue;
      for (const int rows : {kRows, kLowRows}) {
        if (!(rows == kRows ? high : low)) continue;
        const Block block = estimate(problem, arch, width, threads, rows);
        if (block.us >= 0 && (best.us < 0 || block.us < best.us)) best = block;
      }
    }
  }
  return best;
}

std::optional<std::string> refuse(const Problem& problem) {
  const Axis &h = problem.h, &w = problem.w;
  if (problem.multiplier != 1) return "it takes one filter per channel";
  if (w.kernel > kMaxKernel || h.kernel > kMaxKernel) {
    return "it takes kernels of up to " + std::to_string(kMaxKernel) + " x " +
           std::to_string(kMaxKernel);
  }
  if (h.stride != w.stride || h.stride > 2) return "it takes stride 1 or 2, the same on both axes";
  if (problem.pass == Pass::backward_input && h.stride == 2 &&
      std::max(h.dilation, w.dilation) > 1) {
    return "its input gradient takes no dilation with stride 2";
  }
  // Positions within an image, tiles and the bytes of a step are counted in 32 bits.
  constexpr std::int64_t kMaxSide = 1 << 15;
  constexpr std::int64_t kMost = std::int64_t{1} << 30;
  if (std::max({h.input, w.input, h.output(), w.output(), h.dilation, w.dilation}) > kMaxSide ||
      problem.channels * w.dilation >= kMost / 8 ||
      problem.batch * std::max(h.input * w.input, h.output() * w.output()) >= kMost) {
    return "images, batch or channels are too large for it";
  }
  return std::nullopt;
}

// The zeros of the padding meet filters, never an image; but an output gradient that a tile lacks
// is a zero that meets one.
bool spreads_nonfinite(const Problem& problem) { return problem.pass == Pass::backward_weight; }

Answer plan_launch(const Kernel& kernel, const Problem& problem, const Arch& arch) {
  if (auto reason = refuse(problem)) return *std::move(reason);
  const Block best = choose_block(problem, arch);
  if (best.us < 0) return "its filters do not fit the shared memory of the device";
  const Geometry g = geometry(problem, best.width, best.threads, best.rows);
  Plan plan;
  plan.kernel = &kernel;
  plan.blocks = g.items == 0 ? 0 : best.slices * g.groups;
  plan.threads = best.threads;
  plan.tiling = {.planes = best.width,
                 .images = 1,
                 .rows = g.shape.rows,
                 .stages = 1,
                 .threads = best.threads,
                 .tile_rows = g.shape.rows,
                 .columns = g.shape.columns,
                 .places = 0};
  plan.estimate_us = best.us;
  if (problem.pass == Pass::backward_weight) {
    plan.slices = plan.blocks;
    plan.sums_overlap = is_sm_90(arch);
    plan.workspace_bytes = partials_of(problem, g, plan.blocks).bytes();
  }
  return plan;
}

}  // namespace

const FamilyPlanner kStripPlanner{plan_launch, spreads_nonfinite};

}  // namespace dwconv
