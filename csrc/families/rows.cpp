#include "rows.h"

#include "rows_planner.h"

namespace dwconv::rows {
namespace {

constexpr std::int64_t kLine = 128;  // bytes of a line of the L2
// Of pixels that begin within a line: N128 C144 56x56 k3 float32 took 218 us, and 189 in strip.
constexpr double kSplit = 1.12;

bool fills_lines(const Problem& problem, std::int64_t channels) {
  return channels * size_of(problem.dtype) % kLine == 0;
}

// As in unit.h, of a weight gradient whose blocks share no line with others: 14x14 k3 C576 float16
// took 40 us and then 36, 7x7 k5 C1152 float32 43 and 40. With lines, columns or rows in common
// they are read again (56x56 k3 C144 float16 in diagonal, 119 and 204), and with a dilation as
// well.
bool reads_lines_last(const Problem& problem, const Geometry& g) {
  const bool lines_are_whole =
      g.groups == 1 || (fills_lines(problem, problem.channels) && fills_lines(problem, g.width));
  return problem.pass == Pass::backward_weight && problem.h.stride == 1 && lines_are_whole &&
         g.column_tiles == 1 && g.row_classes == 1 && g.column_classes == 1 &&
         reads_last(problem, g);
}

}  // namespace

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

double memory_us(const Problem& problem, const Arch& arch, const Geometry& g,
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
  const double narrow = 1 - std::min(1.0, bytes_of(g.width) / (2.0 * kLine));
  const bool splits =
      problem.dtype == DType::float32 && g.groups > 1 && !fills_lines(problem, problem.channels);
  const double split = splits ? kSplit : 1;
  return (input + output + source_bytes * memory.reread * std::max(read - 1, 0.0)) / rate *
         (1 + memory.narrow * narrow) * (1 + memory.partly * (1 - channels)) * split;
}

std::optional<std::string> refuse(const Problem& problem, const Arch& arch) {
  if (!is_sm_90(arch)) return "it needs the copy engine of sm_90";
  const Axis &h = problem.h, &w = problem.w;
  if (problem.multiplier != 1) return "it takes one filter per channel";
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

Answer plan_of(const Kernel& kernel, const Problem& problem, const Geometry& g, const Found& best,
               int stages) {
  if (g.units * g.steps >= std::int64_t{1} << 30)
    return "images, batch or channels are too large for it";
  Plan plan;
  plan.kernel = &kernel;
  plan.blocks = g.units == 0 ? 0 : best.slices * g.groups;
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
  plan.last_use = reads_lines_last(problem, g);
  if (problem.pass == Pass::backward_weight) {
    plan.slices = plan.blocks;
    plan.sums_overlap = true;
    plan.workspace_bytes = partials_of(problem, g, plan.blocks).bytes();
  }
  plan.estimate_us = best.us;
  return plan;
}

}  // namespace dwconv::rows
