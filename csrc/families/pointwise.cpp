#include "pointwise.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "family.h"

namespace dwconv {
namespace {

using namespace pointwise;

// What an H100 gets through.
constexpr double kLaunchUs = 3.5;
constexpr double kBytesPerUs = 2.7e6;
constexpr double kResultsPerUs = 3.0e3;  // of a multiprocessor: indices
constexpr double kSector = 32;           // bytes that memory moves at least
constexpr double kBlockUs = 3;           // of a weight gradient: its first loads, its sums
constexpr double kBatchUs = 1.1;         // of one: a thread's loads, until all have come
constexpr int kResidentBlocks = 6;

std::int64_t result_numel(const Problem& problem) {
  return problem.pass == Pass::backward_input ? problem.input_numel() : problem.output_numel();
}

// Columns between those that count come along, and rows between them where both are in a sector.
double moved_bytes(const Problem& problem) {
  const auto bytes = static_cast<double>(size_of(problem.dtype));
  const auto results = static_cast<double>(problem.output_numel());
  const bool skips_rows = static_cast<double>(problem.w.input) * bytes >= 2 * kSector;
  const double source = static_cast<double>(problem.input_numel()) * bytes /
                        (skips_rows ? static_cast<double>(problem.h.stride) : 1);
  return std::min(source, results * kSector) + results * bytes;
}

// Of channels_last images. The rows of pixels that do not count are not read.
double estimate_pixels_us(const Problem& problem, const Arch& arch) {
  const double share = arch.multiprocessors / 132.0;
  const auto results = static_cast<double>(result_numel(problem));
  const auto others = static_cast<double>(std::min(problem.input_numel(), problem.output_numel()));
  const double memory =
      (results + others) * static_cast<double>(size_of(problem.dtype)) / (kBytesPerUs * share);
  const double issue = has_strides(problem) ? results / (kResultsPerUs * arch.multiprocessors) : 0;
  return kLaunchUs + memory + issue;
}

double estimate_us(const Problem& problem, const Arch& arch) {
  if (problem.layout == Layout::nhwc) return estimate_pixels_us(problem, arch);
  const auto results = static_cast<double>(problem.output_numel());
  const double memory = moved_bytes(problem) / (kBytesPerUs * arch.multiprocessors / 132);
  const double issue = results / (kResultsPerUs * arch.multiprocessors);
  if (problem.pass != Pass::backward_weight) return kLaunchUs + memory + issue;
  const auto channels = static_cast<double>(problem.channels);
  const double rounds =
      std::max(1.0, channels / (static_cast<double>(kResidentBlocks) * arch.multiprocessors));
  const double batches = std::ceil(results / channels / (kThreads * kBatch));
  return kLaunchUs + std::max(memory + issue, rounds * (kBlockUs + kBatchUs * batches));
}

std::optional<std::string> refuse(const Problem& problem) {
  const Axis &h = problem.h, &w = problem.w;
  if (problem.multiplier != 1) return "it takes one filter per channel";
  if (h.kernel != 1 || w.kernel != 1) return "it takes kernels of 1 x 1";
  if (h.pad_before + h.pad_after + w.pad_before + w.pad_after > 0) return "it takes no padding";
  // Elements of the output are counted in 32 bits, and a block of them more.
  constexpr std::int64_t kMost = std::int64_t{1} << 30;
  if (std::max(problem.output_numel(), result_numel(problem)) >= kMost ||
      h.stride * w.input >= kMost || w.stride >= kMost) {
    return "the problem is too large for it";
  }
  return std::nullopt;
}

Answer plan_launch(const Kernel& kernel, const Problem& problem, const Arch& arch) {
  if (auto reason = refuse(problem)) return *std::move(reason);
  const bool vectors = problem.layout == Layout::nhwc && !has_strides(problem);
  const std::int64_t per_block =
      kThreads *
      (vectors ? kVectors * 16 / static_cast<std::int64_t>(size_of(problem.dtype)) : kBatch);
  Plan plan;
  plan.kernel = &kernel;
  plan.threads = kThreads;
  plan.blocks = problem.pass == Pass::backward_weight
                    ? problem.channels
                    : (result_numel(problem) + per_block - 1) / per_block;
  plan.estimate_us = estimate_us(problem, arch);
  return plan;
}

// Every product is one that a direct sum has.
bool spreads_nonfinite(const Problem&) { return false; }

}  // namespace

const FamilyPlanner kPointwisePlanner{plan_launch, spreads_nonfinite};

}  // namespace dwconv
