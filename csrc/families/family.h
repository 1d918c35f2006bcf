// What the planner asks of a kernel family. Pure host code: no torch, no CUDA.
#pragma once

#include <optional>
#include <string>

#include "../plan.h"

namespace dwconv {

struct FamilyPlanner {
  // Why the kernel cannot take the problem, as a sentence; nothing when it can. The planner has
  // already matched pass, dtype and layout.
  std::optional<std::string> (*refuse)(const Kernel&, const Problem&, const Arch&);
  // Whether zeros around an image meet its numbers, so that an Inf or NaN may reach results that a
  // direct sum keeps finite.
  bool (*spreads_nonfinite)(const Problem&);
  // The launch and the expected time.
  Plan (*configure)(const Kernel&, const Problem&, const Arch&);
};

// In the order of enum Family.
extern const FamilyPlanner kGenericPlanner;
extern const FamilyPlanner kTilePlanner;
extern const FamilyPlanner kToeplitzPlanner;

}  // namespace dwconv
