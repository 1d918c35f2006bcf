// The pointwise family: filters of one element. Shared by its planner and its kernels.
#pragma once

namespace dwconv::pointwise {

inline constexpr int kThreads = 256;
// Loads that a thread has under way at a time.
inline constexpr int kBatch = 8;

}  // namespace dwconv::pointwise
