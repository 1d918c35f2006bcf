// The planner: which of the compiled kernels computes a problem on a device. Pure host code.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "plan.h"

namespace dwconv {

// What the user asks of the planner.
struct Policy {
  int forced_row = -1;            // take this row of the table or fail; -1: choose
  bool strict_nonfinite = false;  // only kernels that spread Inf and NaN as a direct sum does

  constexpr bool operator==(const Policy&) const = default;
};

// Why a kernel cannot take a problem.
struct Refusal {
  const Kernel* kernel;
  std::string reason;
};

// The planner's answer with its reasons: every other kernel of the problem's pass, dtype and layout
// is either a runner-up, slowest last, or refused. Of a channels_last problem, the best contiguous
// kernel is there as well.
struct Choice {
  Plan plan;
  std::vector<Plan> runners_up;
  std::vector<Refusal> refusals;
};

const std::vector<Kernel>& kernels();
const Kernel* find_kernel(const std::string& name);

// Considers every kernel. Throws std::invalid_argument with a sentence when the problem is
// malformed or the policy forces a kernel that cannot take it.
Choice choose(const Problem& problem, const Arch& arch, const Policy& policy);

// choose(...).plan, remembered by problem, arch and policy. Thread-safe.
Plan plan(const Problem& problem, const Arch& arch, const Policy& policy);

struct CacheStatistics {
  std::int64_t hits;
  std::int64_t misses;
  std::int64_t size;
};
CacheStatistics cache_statistics();
void clear_cache();

// The policy of this process, which the operators use.
Policy current_policy();
void set_current_policy(const Policy& policy);

}  // namespace dwconv
