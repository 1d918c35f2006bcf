#include "generic.h"

#include <algorithm>
#include <cmath>

#include "family.h"

namespace dwconv {
namespace {

using namespace generic;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// What one multiprocessor gets through in a microsecond: results with their index arithmetic, and
// multiply-adds; and what a thread waits for each tap, in microseconds. Fitted to 419 passes of 5
// to 40 us, whose times they give within a sixth on average; nhwc is slow with large filters
// because its lanes read weights that lie far apart.
struct Rates {
  double results;
  double multiply_adds;
  double tap_us = 0;
};
constexpr Rates kGatherNchw{503, 12900, 0.071};
constexpr Rates kGatherNhwc{588, 10500, 0.098};
constexpr double kRowUs = 0.15;  // for each row of the filter
constexpr double kGatherUs = 5.4;
constexpr double kOverlap = 0.2;  // of the shorter of work and waits, what is seen
// Where another family promises as little: N20 C42 21x53 k6x2 stride 2 float32 took 11.7 us by
// strip and 14.9 by this one, which had promised 10.4.
constexpr double kAgainstOthers[] = {1, 1.12};  // nchw, nhwc

// Pairs of an output and a tap that meet an element of the input along an axis. Of long filters
// some taps stand for all.
double pairs_inside(const Axis& axis) {
  double pairs = 0;
  const std::int64_t step = ceil_div(axis.kernel, 64);
  for (std::int64_t tap = 0; tap < axis.kernel; tap += step) {
    const std::int64_t before = std::max<std::int64_t>(axis.pad_before - tap * axis.dilation, 0);
    const std::int64_t end = axis.pad_before - tap * axis.dilation + axis.input;
    const std::int64_t first = ceil_div(before, axis.stride);
    const std::int64_t last = end > 0 ? std::min(ceil_div(end, axis.stride), axis.output()) : 0;
    pairs += static_cast<double>(std::max<std::int64_t>(last - first, 0) * step);
  }
  return pairs;
}

double gather_us(const Problem& problem, const Arch& arch) {
  const bool forward = problem.pass == Pass::forward;
  const Rates& rates = problem.layout == Layout::nchw ? kGatherNchw : kGatherNhwc;
  const std::int64_t results = forward ? problem.output_numel() : problem.input_numel();
  const double planes = static_cast<double>(problem.batch * problem.filters());
  const double pairs = pairs_inside(problem.h) * pairs_inside(problem.w);
  const double work =
      (static_cast<double>(results) / rates.results + planes * pairs / rates.multiply_adds) /
      arch.multiprocessors;
  // Of a result on average.
  const Axis &h = problem.h, &w = problem.w;
  const auto of_plane = static_cast<double>(forward ? h.output() * w.output() : h.input * w.input);
  const double rows = static_cast<double>(h.kernel) / static_cast<double>(forward ? 1 : h.stride);
  const double waits = rates.tap_us * pairs / of_plane + kRowUs * rows;
  return kAgainstOthers[static_cast<int>(problem.layout)] *
         (kGatherUs + std::max(work, waits) + kOverlap * std::min(work, waits));
}

// Of a weight gradient: fitted to all cases of benchmarks/h100.json.
constexpr Rates kWeightNchw{458, 11200};
constexpr Rates kWeightNhwc{1011, 16900};
constexpr double kLaunchUs = 5;
// Its second kernel, and rows that lanes walk down one after the other. N20 C42 21x53 k6x2 stride 2
// float32 takes 36 us where the rates alone say 10.
constexpr double kSumUs = 10;

// What the rates do not know, as a factor.
double slowdown(const Problem& problem) {
  if (problem.layout == Layout::nhwc) {
    // Lanes without a channel; N79 C22 100x60 k2 stride 2 float32 takes 74 us where the rates say
    // 22, N7374 C3 76x5 k4x2 stride 2 bfloat16 121 where they say 9.
    const auto channels = static_cast<double>(problem.filters());
    return 2 * kWarp * std::ceil(channels / kWarp) / channels;
  }
  // Lanes of different rows: N2324 C13 7x5 k5 stride 2 float32 takes 54 us where the rates say 17.
  return problem.w.output() < 8 ? 20 : 1;
}

double weight_us(const Problem& problem, const Arch& arch) {
  const Rates& rates = problem.layout == Layout::nchw ? kWeightNchw : kWeightNhwc;
  const auto outputs = static_cast<double>(problem.output_numel());
  const double multiply_adds = outputs * static_cast<double>(problem.taps());
  return kLaunchUs + kSumUs +
         slowdown(problem) * (outputs / rates.results + multiply_adds / rates.multiply_adds) /
             arch.multiprocessors;
}

Plan gather(const Problem& problem) {
  const std::int64_t results =
      problem.pass == Pass::forward ? problem.output_numel() : problem.input_numel();
  Plan plan;
  plan.threads = kGatherThreads;
  plan.blocks = ceil_div(results, kGatherThreads);
  return plan;
}

// A slice is a run of output rows, counted through the batch. Slices are small enough that what a
// block rereads once per tap stays in its L1, and many enough to fill the device, but their partial
// sums must not outgrow the data.
Plan weight_gradient(const Problem& problem, const Arch& arch) {
  constexpr std::int64_t kSliceBytesPerWarp = 2 << 10;  // x and gy: 128 KiB of L1 over 64 warps
  constexpr std::int64_t kWorkspaceBytes = 64 << 20;    // at most, unless one slice needs more
  constexpr std::int64_t kBlocksPerMultiprocessor = 16;

  const std::int64_t groups = ceil_div(problem.filters(), lanes_of(problem).filters);
  const std::int64_t rows = problem.batch * problem.h.output();
  const std::int64_t group_bytes =
      (problem.input_numel() + problem.output_numel()) * size_of(problem.dtype) / groups;
  const std::int64_t partial_bytes =
      problem.filters() * problem.sums() * accumulator_size(problem.dtype);

  const std::int64_t rounds = ceil_div(problem.sums(), kMaxTapWarps);
  const std::int64_t warps = ceil_div(problem.sums(), rounds);

  const std::int64_t to_fit = ceil_div(group_bytes, kSliceBytesPerWarp * warps);
  const std::int64_t to_fill = ceil_div(kBlocksPerMultiprocessor * arch.multiprocessors, groups);
  const std::int64_t affordable = std::max<std::int64_t>(1, kWorkspaceBytes / partial_bytes);

  Plan plan;
  plan.threads = static_cast<int>(warps) * kWarp;
  plan.slices = std::min({std::max(to_fit, to_fill), affordable, rows});
  plan.blocks = groups * plan.slices;
  plan.workspace_bytes = plan.slices * partial_bytes;
  return plan;
}

// Always valid: this is the fallback.
Answer plan_launch(const Kernel& kernel, const Problem& problem, const Arch& arch) {
  const bool weight = problem.pass == Pass::backward_weight;
  Plan plan = weight ? weight_gradient(problem, arch) : gather(problem);
  plan.kernel = &kernel;
  plan.estimate_us = weight ? weight_us(problem, arch) : gather_us(problem, arch);
  return plan;
}

bool spreads_nonfinite(const Problem&) { return false; }

}  // namespace

const FamilyPlanner kGenericPlanner{plan_launch, spreads_nonfinite};

}  // namespace dwconv
