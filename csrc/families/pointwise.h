// The pointwise family: filters of one element. Shared by its planner and its kernels.
#pragma once

#include "../problem.h"

namespace dwconv::pointwise {

inline constexpr int kThreads = 256;
// Loads that a thread has under way at a time.
inline constexpr int kBatch = 8;
// And of 16 bytes each.
inline constexpr int kVectors = 4;

constexpr bool has_strides(const Problem& problem) {
  return problem.h.stride > 1 || problem.w.stride > 1;
}

}  // namespace dwconv::pointwise
