// Where the partial sums of a weight gradient lie: each block writes those of `planes` channels for
// every group of channels that its run of units meets: one for each tap of a filter, and after them
// the bias's, if that is wanted. Shared by planners and kernels.
#pragma once

#include <algorithm>
#include <cstdint>

namespace dwconv {

// The second kernel, which adds what the blocks of the first have left: threads of a block, and
// partial sums that a thread waits for at a time.
inline constexpr int kPartialThreads = 256;
inline constexpr int kPartialBatch = 8;

struct Partials {
  std::int64_t units = 0;
  std::int64_t units_per_group = 1;
  std::int64_t blocks = 1;
  std::int64_t channels = 1;
  int planes = 1;
  int taps = 1;
  bool bias = false;
  bool whole = false;         // runs have all units of a group: no partial sums at all
  std::int64_t segments = 0;  // groups that a run can meet

  constexpr int sums() const { return taps + (bias ? 1 : 0); }  // of a channel
  constexpr std::int64_t bytes() const {
    return whole ? 0 : blocks * segments * planes * sums() * 4;
  }

  constexpr std::int64_t groups() const { return units / units_per_group; }

  // Threads of the second kernel that share a result, a power of two: all of a block where a
  // handful of results comes from thousands of blocks.
  constexpr int lanes() const {
    int lanes = 8;
    while (lanes < kPartialThreads && lanes * kPartialBatch < blocks / groups())
      lanes *= 2;
    return lanes;
  }
};

constexpr Partials with_segments(Partials p) {
  if (p.units == 0) return p;
  const std::int64_t run = (p.units + p.blocks - 1) / p.blocks;
  p.segments = std::min((run + p.units_per_group - 1) / p.units_per_group + 1, p.groups());
  return p;
}

}  // namespace dwconv
