// What the planner asks of a kernel family. Pure host code: no torch, no CUDA.
#pragma once

#include <string>
#include <variant>

#include "../plan.h"

namespace dwconv {

// The launch and the expected time; or why the kernel cannot take the problem, as a sentence.
using Answer = std::variant<Plan, std::string>;

struct FamilyPlanner {
  // The planner has already matched pass, dtype and layout.
  Answer (*plan)(const Kernel&, const Problem&, const Arch&);
  // Whether zeros around an image meet its numbers, so that an Inf or NaN may reach results that a
  // direct sum keeps finite.
  bool (*spreads_nonfinite)(const Problem&);
};

// In the order of enum Family.
extern const FamilyPlanner kGenericPlanner;
extern const FamilyPlanner kPointwisePlanner;
extern const FamilyPlanner kTilePlanner;
extern const FamilyPlanner kPlanePlanner;
extern const FamilyPlanner kToeplitzPlanner;
extern const FamilyPlanner kStripPlanner;
extern const FamilyPlanner kRingPlanner;
extern const FamilyPlanner kDiagonalPlanner;
extern const FamilyPlanner kBandedPlanner;
extern const FamilyPlanner kHankelPlanner;
extern const FamilyPlanner kDirectPlanner;
extern const FamilyPlanner kOuterPlanner;
extern const FamilyPlanner kDensePlanner;
extern const FamilyPlanner kColumnsPlanner;
extern const FamilyPlanner kBatchedPlanner;

}  // namespace dwconv
