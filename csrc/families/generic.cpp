#include "generic.h"

#include <algorithm>
#include <cmath>

#include "family.h"

namespace dwconv {
namespace {

using namespace generic;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// What one multiprocessor gets through in a microsecond: results with their index arithmetic, and
// multiply-adds. Fitted to all cases of benchmarks/h100.json, whose times they give within a factor
// of 2.6; nhwc is slow with large filters because its lanes read weights that lie far apart.
struct Rates {
  double results;
  double multiply_adds;
};
constexpr Rates kGatherNchw{455, 43500};
constexpr Rates kGatherNhwc{624, 12800};
constexpr Rates kWeightNchw{458, 11200};
constexpr Rates kWeightNhwc{1011, 16900};
constexpr double kLaunchUs = 5;
// Of a weight gradient: its second kernel, and rows that lanes walk down one after the other. N20
// C42 21x53 k6x2 stride 2 float32 takes 36 us where the rates alone say 10.
constexpr double kSumUs = 10;

// What the rates do not know, as a factor.
double slowdown(const Problem& problem) {
  const bool weight = problem.pass == Pass::backward_weight;
  if (weight && problem.layout == Layout::nhwc) {
    // Lanes without a channel; N79 C22 100x60 k2 stride 2 float32 takes 74 us where the rates say
    // 22, N7374 C3 76x5 k4x2 stride 2 bfloat16 121 where they say 9.
    const auto channels = static_cast<double>(problem.filters());
    return 2 * kWarp * std::ceil(channels / kWarp) / channels;
  }
  // Lanes of different rows: the weight gradient of N2324 C13 7x5 k5 stride 2 float32 takes 54 us
  // where the rates say 17, N7 C224 97x9 k8 float16 19 us forward where they say 13.
  const bool narrow = problem.layout == Layout::nchw && problem.w.output() < 8;
  if (weight) return narrow ? 20 : 1;
  // Every second element: N13 C1674 18x20 k9 stride 2 float32 takes 54 us where the rates say 25.
  if (problem.pass == Pass::forward && problem.w.stride > 1) return 2;
  return narrow ? 1.8 : 1;
}

double estimate_us(const Problem& problem, const Arch& arch) {
  const bool nchw = problem.layout == Layout::nchw;
  const bool weight = problem.pass == Pass::backward_weight;
  const Rates& gather = nchw ? kGatherNchw : kGatherNhwc;
  const Rates& rates = !weight ? gather : nchw ? kWeightNchw : kWeightNhwc;
  const auto outputs = static_cast<double>(problem.output_numel());
  const auto results =
      problem.pass == Pass::backward_input ? static_cast<double>(problem.input_numel()) : outputs;
  const double multiply_adds = outputs * static_cast<double>(problem.taps());
  return kLaunchUs + (weight ? kSumUs : 0) +
         slowdown(problem) * (results / rates.results + multiply_adds / rates.multiply_adds) /
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
  Plan plan =
      problem.pass == Pass::backward_weight ? weight_gradient(problem, arch) : gather(problem);
  plan.kernel = &kernel;
  plan.estimate_us = estimate_us(problem, arch);
  return plan;
}

bool spreads_nonfinite(const Problem&) { return false; }

}  // namespace

const FamilyPlanner kGenericPlanner{plan_launch, spreads_nonfinite};

}  // namespace dwconv
