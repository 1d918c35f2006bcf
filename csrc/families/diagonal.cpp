#include "diagonal.h"

#include <bit>
#include <cmath>

#include "family.h"
#include "rows_planner.h"

namespace dwconv {
namespace diagonal {

Geometry geometry(const Problem& problem, const Tiles& tiles) {
  constexpr int bytes = 2;
  const bool weight = problem.pass == Pass::backward_weight;
  Geometry g = rows::units_of(problem, tiles, {weight ? kColumns : 2, kOctet});
  g.lanes = g.vectors;
  g.pixel_bytes = g.lanes * kOctet * bytes;
  const auto row_bytes = [&](int pixels) {
    return round_up(g.images * pixels * g.pixel_bytes, kStageAlignment);
  };
  const int control = rows::control_bytes(kStages, kStageAlignment);
  if (weight) {
    g.warps = g.vectors * g.images * g.strips;
    g.steps = ceil_div(g.steps, 2);
    g.grad_pixels = g.strips * kColumns;
    g.pixels = g.grad_pixels + kShifts - 1;
    g.grad_at = 2 * row_bytes(g.pixels);
    g.stage_bytes = g.grad_at + 2 * row_bytes(g.grad_pixels);
    g.shared_bytes = control + std::max(kStages * g.stage_bytes, 4 * g.warps * kWarpSums);
    return g;
  }
  g.warps = g.vectors * ceil_div(g.images * g.strips, kPositions);
  // An odd number, so that neighbouring images begin at pixels that differ by one modulo 8.
  const int pairs = pixel_pairs(g.w.kernel, g.w.stride);
  g.pixels = ((g.strips - 1) * 2 * g.w.stride + 2 * pairs) | 1;
  g.stage_bytes = row_bytes(g.pixels);
  g.place_bytes = row_bytes(g.strips * g.shape.columns);
  const int filters = g.width * static_cast<int>(problem.taps()) * bytes;
  g.shared_bytes = control + std::max(kStages * g.stage_bytes + kPlaces * g.place_bytes, filters);
  return g;
}

}  // namespace diagonal

namespace {

using namespace diagonal;
using rows::Found;
using rows::Turns;

// What an H100 gets through, for the choice among tilings and among families, in microseconds.
// Fitted to 2,437 timings on 371 problems, most of them random: the choice is 1.4 % slower than the
// best tiling that was tried on average, for weight gradients 1.1 %; and that among families is 2.2
// and 2.0 % slower than the best one.
struct Costs {
  rows::Memory memory;
  double launch;   // with the first rows and the last ones
  double product;  // of a row, for a warp of a multiprocessor,
  double warp;     // and besides
  double step;     // of a row, at least,
  double alone;    // and for each product
  double outside;  // of a row's time, where it is not there
  double unit;
  double block;
  double overlap;   // of the shorter of what memory takes and what warps do
  double sum;       // the kernel that adds partial sums
  double partials;  // bytes that a partial sum costs
  double against_others;
};
constexpr Costs kConvolution{
    .memory = {.bytes_per_us = 3.05e6, .reread = 0.36, .narrow = 0.25, .partly = 1.0},
    .launch = 6,
    .product = 0.0012,
    .warp = 0.004,
    .step = 0.32,
    .alone = 0.0036,
    .outside = 0.41,
    .unit = 0.5,
    .block = 0.73,
    .overlap = 0.22,
    .sum = 0,
    .partials = 0,
    .against_others = 0.97};
constexpr Costs kWeightGradient{
    .memory = {.bytes_per_us = 2.93e6, .reread = 0.12, .narrow = 0.6, .partly = 1.0},
    .launch = 6.8,
    .product = 0.0013,
    .warp = 0.0043,
    .step = 0.19,
    .alone = 0.0057,
    .outside = 1,
    .unit = 0.26,
    .block = 1.15,
    .overlap = 0.2,
    .sum = 3.9,
    .partials = 15,
    .against_others = 1};

Found estimate(const Problem& problem, const Arch& arch, const Tiles& tiles, const Geometry& g,
               int resident) {
  const bool weight = problem.pass == Pass::backward_weight;
  const Turns t(problem, arch, g, resident, kMostAdded);
  const double inside = std::min(g.steps, ceil_div(g.h.source, g.row_classes * (weight ? 2 : 1)));
  const double products = weight ? 2 * kChunks * offsets(g.h.kernel)
                                 : static_cast<double>(g.h.kernel) / g.h.stride * 2 *
                                       ((pixel_pairs(g.w.kernel, g.w.stride) + 1) / 2);
  const Costs& c = weight ? kWeightGradient : kConvolution;
  const double step =
      std::max(t.warps * (products * c.product + c.warp), c.step + c.alone * products);
  const double compute =
      t.waves * t.rounds * ((inside + (g.steps - inside) * c.outside) * step + c.unit);
  const double memory = rows::memory_us(problem, arch, g, c.memory);
  const double sums =
      t.blocks * g.width * static_cast<double>(problem.sums()) * c.partials / c.memory.bytes_per_us;
  const double us = c.launch + c.sum + sums + c.block * t.waves * t.on_one +
                    std::max(memory, compute) + c.overlap * std::min(memory, compute);
  return {us * c.against_others, tiles, t.slices};
}

Found search(const Problem& problem, const Arch& arch) {
  const Filter filter{static_cast<int>(problem.h.kernel), static_cast<int>(problem.w.kernel)};
  const int most = problem.pass == Pass::backward_weight ? kMostSumThreads : most_threads(filter);
  return rows::search(
      problem, arch, geometry(problem, {2 * kOctet, 1, 1, 1}), kMostOctets * kOctet,
      [&](const Tiles& tiles) { return geometry(problem, tiles); },
      [&](const Geometry& g) {
        // The copy engine swizzles pixels of 32, 64 and 128 bytes.
        return std::has_single_bit(static_cast<unsigned>(g.vectors)) ? most / g.threads() : 0;
      },
      [&](const Tiles& tiles, const Geometry& g, int resident) {
        return estimate(problem, arch, tiles, g, resident);
      });
}

Answer plan_launch(const Kernel& kernel, const Problem& problem, const Arch& arch) {
  if (auto reason = rows::refuse(problem, arch)) return *std::move(reason);
  const Filter filter{static_cast<int>(problem.h.kernel), static_cast<int>(problem.w.kernel)};
  if (!is_compiled(problem.pass, filter, static_cast<int>(problem.h.stride)))
    return "it is compiled for 3 x 3, 5 x 5 and 7 x 7 filters, with stride 1 or forward from 5 x 5";
  const Found best = search(problem, arch);
  if (best.us < 0) return "its rows do not fit the shared memory of the device";
  const Geometry g = geometry(problem, best.tiles);
  return rows::plan_of(kernel, problem, g, best, kStages);
}

// The zeros of a filter operand meet other channels, and columns nearby.
bool spreads_nonfinite(const Problem&) { return true; }

}  // namespace

const FamilyPlanner kDiagonalPlanner{plan_launch, spreads_nonfinite};

}  // namespace dwconv
