// supports -> estimate -> choose. Pure host code, so that the choice for any device can be tested
// on a machine without one.
#include "planner.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <unordered_map>

#include "families/family.h"
#include "problem_text.h"
#include "transpose.h"

namespace dwconv {
namespace {

std::vector<Kernel> make_table() {
  std::vector<Kernel> table;
#define DWCONV_KERNEL(family, pass, dtype, layout)                                           \
  table.push_back({static_cast<int>(table.size()), Family::family, Pass::pass, DType::dtype, \
                   Layout::layout, #family "_" #pass "_" #dtype "_" #layout});
#include "kernels.inc"
  return table;
}

const FamilyPlanner& planner_of(Family family) {
  switch (family) {
    case Family::generic:
      return kGenericPlanner;
    case Family::pointwise:
      return kPointwisePlanner;
    case Family::tile:
      return kTilePlanner;
    case Family::plane:
      return kPlanePlanner;
    case Family::toeplitz:
      return kToeplitzPlanner;
    case Family::strip:
      return kStripPlanner;
    case Family::ring:
      return kRingPlanner;
    case Family::diagonal:
      return kDiagonalPlanner;
    case Family::banded:
      return kBandedPlanner;
    case Family::hankel:
      return kHankelPlanner;
    case Family::direct:
      return kDirectPlanner;
    case Family::outer:
      return kOuterPlanner;
    case Family::dense:
      return kDensePlanner;
    case Family::columns:
      return kColumnsPlanner;
    case Family::batched:
      return kBatchedPlanner;
  }
  throw std::logic_error("a kernel family has no planner");
}

// An image of one channel, or of one pixel, lies the same in both layouts: contiguous has more
// kernels for those.
Problem plainly(Problem problem) {
  const bool one_channel = problem.channels == 1 && problem.multiplier == 1;
  const bool one_pixel = problem.h.input == 1 && problem.w.input == 1 && problem.h.output() == 1 &&
                         problem.w.output() == 1;
  if (one_channel || one_pixel) problem.layout = Layout::nchw;
  return problem;
}

// What an H100 takes to transpose images: a launch, and bytes that are read and written again.
// Fitted to 216 transpositions of 68 problems' images, met within 15 %.
struct Transposing {
  double launch_us, bytes_per_us;
};
constexpr Transposing transposing(const Problem& problem) {
  if (size_of(problem.dtype) == 4) return {5, 1.25e6};
  return {5, problem.channels % 2 == 0 ? 1.45e6 : 1.0e6};  // rows of words, if channels are pairs
}

bool can_be_transposed(const Problem& problem) {
  return problem.layout == Layout::nhwc && size_of(problem.dtype) <= 4 &&
         input_pixels(problem).can_be_transposed() && output_pixels(problem).can_be_transposed();
}

Problem contiguous(Problem problem) {
  problem.layout = Layout::nchw;
  return problem;
}

// The plan of the contiguous problem as one of a channels_last problem.
Plan by_transposing(Plan plan, const Problem& problem, const Arch& arch) {
  const auto elements = static_cast<double>(problem.input_numel() + problem.output_numel());
  const auto element_bytes = static_cast<double>(size_of(problem.dtype));
  const auto [launch_us, rate] = transposing(problem);
  plan.transposed = true;
  plan.workspace_bytes += TransposedImages(problem).end;
  plan.estimate_us +=
      2 * launch_us + elements * element_bytes / (rate * arch.multiprocessors / 132);
  return plan;
}

bool is_for(const Kernel& kernel, const Problem& problem) {
  return kernel.pass == problem.pass && kernel.dtype == problem.dtype &&
         kernel.layout == problem.layout;
}

Answer ask(const Kernel& kernel, const Problem& problem, const Arch& arch, const Policy& policy) {
  if (!is_for(kernel, problem)) return "it is compiled for another pass, dtype or layout";
  const FamilyPlanner& planner = planner_of(kernel.family);
  if (policy.strict_nonfinite && planner.spreads_nonfinite(problem)) {
    return "it may spread Inf and NaN further than a direct sum, and strict_nonfinite is set";
  }
  return planner.plan(kernel, problem, arch);
}

Choice choose_forced(const Kernel& kernel, const Problem& problem, const Arch& arch,
                     const Policy& policy) {
  const bool transposed = kernel.layout == Layout::nchw && can_be_transposed(problem);
  const Answer answer = ask(kernel, transposed ? contiguous(problem) : problem, arch, policy);
  if (const auto* reason = std::get_if<std::string>(&answer)) {
    throw std::invalid_argument("the forced kernel " + std::string(kernel.name) +
                                " cannot take the problem (" + to_string(problem) +
                                "): " + *reason);
  }
  const Plan& plan = std::get<Plan>(answer);
  return {transposed ? by_transposing(plan, problem, arch) : plan, {}, {}};
}

struct Key {
  Problem problem;
  Arch arch;
  Policy policy;
  bool operator==(const Key&) const = default;
};

struct KeyHash {
  size_t operator()(const Key& key) const {
    size_t hash = 0;
    const auto mix = [&hash](std::int64_t value) {
      hash ^= std::hash<std::int64_t>{}(value) + 0x9e3779b97f4a7c15ULL + (hash << 6) + (hash >> 2);
    };
    const Problem& p = key.problem;
    mix(static_cast<int>(p.pass) | static_cast<int>(p.dtype) << 4 |
        static_cast<int>(p.layout) << 8 | static_cast<int>(p.bias) << 12);
    mix(p.batch);
    mix(p.channels);
    mix(p.multiplier);
    for (const Axis& axis : {p.h, p.w}) {
      mix(axis.input);
      mix(axis.kernel);
      mix(axis.stride);
      mix(axis.pad_before);
      mix(axis.pad_after);
      mix(axis.dilation);
    }
    mix(key.arch.compute_capability);
    mix(key.arch.multiprocessors);
    mix(key.arch.compiled_for);
    mix(key.policy.forced_row * 2 + key.policy.strict_nonfinite);
    return hash;
  }
};

class Cache {
 public:
  Plan plan(const Key& key) {
    {
      std::shared_lock lock(mutex_);
      const auto found = plans_.find(key);
      if (found != plans_.end()) {
        hits_.fetch_add(1, std::memory_order_relaxed);
        return found->second;
      }
    }
    const Plan chosen = choose(key.problem, key.arch, key.policy).plan;
    std::unique_lock lock(mutex_);
    // A training run meets a few hundred problems. One that never repeats must not grow for ever.
    if (plans_.size() >= kMaxPlans) plans_.clear();
    plans_.emplace(key, chosen);
    misses_.fetch_add(1, std::memory_order_relaxed);
    return chosen;
  }

  CacheStatistics statistics() {
    std::shared_lock lock(mutex_);
    return {hits_.load(), misses_.load(), static_cast<std::int64_t>(plans_.size())};
  }

  void clear() {
    std::unique_lock lock(mutex_);
    plans_.clear();
    hits_ = 0;
    misses_ = 0;
  }

 private:
  static constexpr size_t kMaxPlans = 4096;
  std::shared_mutex mutex_;
  std::unordered_map<Key, Plan, KeyHash> plans_;
  std::atomic<std::int64_t> hits_{0};
  std::atomic<std::int64_t> misses_{0};
};

Cache& cache() {
  static Cache instance;
  return instance;
}

std::atomic<Policy>& policy() {
  static std::atomic<Policy> instance{Policy{}};
  return instance;
}

}  // namespace

const std::vector<Kernel>& kernels() {
  static const std::vector<Kernel> table = make_table();
  return table;
}

const Kernel* find_kernel(const std::string& name) {
  const auto& table = kernels();
  const auto found = std::find_if(table.begin(), table.end(),
                                  [&](const Kernel& kernel) { return name == kernel.name; });
  return found == table.end() ? nullptr : &*found;
}

Choice choose(const Problem& given, const Arch& arch, const Policy& policy) {
  const std::string fault = describe_fault(given);
  if (!fault.empty()) throw std::invalid_argument(fault);
  if (policy.forced_row >= 0) {
    return choose_forced(kernels().at(policy.forced_row), given, arch, policy);
  }
  const Problem problem = plainly(given);
  std::vector<Plan> plans;
  std::vector<Refusal> refusals;
  for (const Kernel& kernel : kernels()) {
    if (!is_for(kernel, problem)) continue;
    Answer answer = ask(kernel, problem, arch, policy);
    if (auto* reason = std::get_if<std::string>(&answer)) {
      refusals.push_back({&kernel, std::move(*reason)});
    } else {
      plans.push_back(std::get<Plan>(answer));
    }
  }
  if (can_be_transposed(problem)) {
    plans.push_back(by_transposing(choose(contiguous(problem), arch, policy).plan, problem, arch));
  }
  if (plans.empty()) throw std::logic_error("no kernel takes the problem " + to_string(problem));
  std::stable_sort(plans.begin(), plans.end(),
                   [](const Plan& a, const Plan& b) { return a.estimate_us < b.estimate_us; });
  return {plans.front(), {plans.begin() + 1, plans.end()}, std::move(refusals)};
}

Plan plan(const Problem& problem, const Arch& arch, const Policy& policy) {
  return cache().plan({problem, arch, policy});
}

CacheStatistics cache_statistics() { return cache().statistics(); }
void clear_cache() { cache().clear(); }

Policy current_policy() { return policy().load(std::memory_order_relaxed); }
void set_current_policy(const Policy& value) { policy().store(value, std::memory_order_relaxed); }

}  // namespace dwconv
