// Where the partial sums of a weight gradient lie: each block writes `planes` x `taps` sums for
// every group of channels that its run of units meets. Shared by planners and kernels.
#pragma once

#include <cstdint>

namespace dwconv {

struct Partials {
  std::int64_t units = 0;
  std::int64_t units_per_group = 1;
  std::int64_t blocks = 1;
  std::int64_t channels = 1;
  int planes = 1;
  int taps = 1;
  std::int64_t segments = 0;  // groups that a run can meet

  constexpr std::int64_t bytes() const { return blocks * segments * planes * taps * 4; }
};

constexpr Partials with_segments(Partials p) {
  const std::int64_t run = (p.units + p.blocks - 1) / p.blocks;
  p.segments = (run + p.units_per_group - 1) / p.units_per_group + 1;
  return p;
}

}  // namespace dwconv
