// What planners and kernels of the families that work on units in shared memory agree on: how an
// axis is read, what a unit takes, how units are dealt out.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../plan.h"
#include "partials.h"

namespace dwconv {

// One spatial axis as a kernel that gathers sees it: result r reads the source elements
//   r * stride - pad + tap * dilation.
struct Window {
  int source = 1;
  int result = 1;
  int kernel = 1;
  int stride = 1;
  int dilation = 1;
  int pad = 0;

  // Source elements, padding included, that `results` neighbouring results read.
  constexpr int reach(int results) const {
    return (results - 1) * stride + (kernel - 1) * dilation + 1;
  }
};

// Of the forward pass, and of the weight gradient, which reads the same windows.
constexpr Window forward_window(const Axis& axis) {
  return {static_cast<int>(axis.input),    static_cast<int>(axis.output()),
          static_cast<int>(axis.kernel),   static_cast<int>(axis.stride),
          static_cast<int>(axis.dilation), static_cast<int>(axis.pad_before)};
}

// Of the input gradient with stride 1: the filter turned round, on the output gradient.
constexpr Window mirrored_window(const Axis& axis) {
  const auto pad = axis.dilation * (axis.kernel - 1) - axis.pad_before;
  return {static_cast<int>(axis.output()), static_cast<int>(axis.input),
          static_cast<int>(axis.kernel),   1,
          static_cast<int>(axis.dilation), static_cast<int>(pad)};
}

// Of the input gradient with stride 2. With tap = 2 * m + phase, result 2 * q + phase - pad reads
// the output gradient at q - m: so the result index is the step q, the taps are the m, in reverse.
constexpr Window phase_window(const Axis& axis) {
  const auto steps = (axis.input - 1 + axis.pad_before) / 2 + 1;
  const auto taps = (axis.kernel + 1) / 2;
  return {static_cast<int>(axis.output()), static_cast<int>(steps), static_cast<int>(taps), 1, 1,
          static_cast<int>(taps - 1)};
}

// Whether the problem is an input gradient that is computed by phases.
constexpr bool by_phases(const Problem& problem) {
  return problem.pass == Pass::backward_input && problem.h.stride == 2;
}

// Of one of the problem's axes.
constexpr Window window_of(const Problem& problem, const Axis& axis) {
  if (by_phases(problem)) return phase_window(axis);
  return problem.pass == Pass::backward_input ? mirrored_window(axis) : forward_window(axis);
}

// What a window has left where taps that meet nothing of the image are left out, of which there are
// `first` before the others.
constexpr Window met_taps(Window axis, int& first) {
  first = std::clamp(axis.pad - axis.result + 1, 0, axis.kernel - 1);
  const int last = std::clamp(axis.pad + axis.source - 1, first, axis.kernel - 1);
  axis.pad -= first;
  axis.kernel = last - first + 1;
  return axis;
}

// Whether some results of the forward pass look at no element of the image.
constexpr bool padding_holds_results(const Problem& problem) {
  const auto holds = [](const Axis& axis) {
    return std::max(axis.pad_before, axis.pad_after) >= axis.extent();
  };
  return holds(problem.h) || holds(problem.w);
}

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
constexpr int round_up(int a, int multiple) { return ceil_div(a, multiple) * multiple; }

// Steps of a weight gradient that the tensor cores add up before the sums go to others in float32:
// they cut what does not fit a sum's 24 bits, always towards zero, which adds up. Without a limit
// the gradient of N3 C8 9473x9473 k3 float16, some 30,000 steps in a row, missed its bound.
inline constexpr int kMostSteps = 512;

// What a run of elements takes in shared memory, in bytes: the 16 bytes around either end come
// along. More than any device has counts as so much more, so that sums of a few still fit 32 bits.
constexpr int run_bytes(std::int64_t elements, int element_bytes) {
  constexpr std::int64_t kTooMuch = 1 << 22;
  return static_cast<int>(std::min((elements * element_bytes + 15) / 16 * 16 + 16, kTooMuch));
}

// What goes with so many stages: a barrier for each, and which unit it holds; a barrier for each
// place for results.
constexpr int control_bytes(int stages) { return stages * (8 + 12) + 2 * 8; }

// The shared memory that a block may use, and that blocks of one multiprocessor share (from sm_80
// on each takes some more). CUDA programming guide, technical specifications by compute capability.
constexpr int shared_reserve(const Arch& arch) { return arch.compute_capability < 80 ? 0 : 1024; }
constexpr int shared_per_multiprocessor(const Arch& arch) {
  switch (arch.compute_capability) {
    case 75:
      return 64 << 10;
    case 80:
    case 87:
      return 164 << 10;
    case 86:
    case 89:
    case 120:
    case 121:
      return 100 << 10;
    default:
      return arch.compute_capability >= 90 ? 228 << 10 : 64 << 10;
  }
}
constexpr int shared_per_block(const Arch& arch) {
  return shared_per_multiprocessor(arch) - shared_reserve(arch);
}

// Blocks that a multiprocessor takes at all. CUDA programming guide, as above.
constexpr int most_blocks(int compute_capability) {
  switch (compute_capability) {
    case 75:
    case 86:
    case 87:
      return 16;
    case 89:
    case 120:
    case 121:
      return 24;
    default:
      return 32;
  }
}

// How units are dealt out to blocks of which `resident` run at a time.
struct Deal {
  std::int64_t blocks = 1;
  double longest = 1;         // units of a block, at most
  bool whole_groups = false;  // a block, or a team of them, has all units of its groups of channels
  bool in_turn = false;
  int queues = 0;         // from which blocks claim units, one after the other
  bool one_group = true;  // a block's units are of one group of channels, or of few
  int team = 1;           // blocks that have a group between them, in turn, and add their sums
};

// Equal runs of neighbours, `per_group` for each group of channels, no shorter than the longest has
// to be.
constexpr Deal deal_runs(std::int64_t groups, std::int64_t per_group, std::int64_t resident,
                         bool whole_groups) {
  const std::int64_t units = groups * per_group;  // none for a batch of none
  const std::int64_t pieces = whole_groups ? std::min(groups, units) : units;
  const std::int64_t longest = std::max<std::int64_t>((pieces + resident - 1) / resident, 1);
  return {(pieces + longest - 1) / longest,
          static_cast<double>(longest * (whole_groups ? per_group : 1)), whole_groups};
}

// In turn, as they lie in memory: all blocks together read and write one place that moves on, which
// memory likes better than a stream for each block (N128 C144 56x56 float32, only copied: 163 us
// where runs took 168; N128 C576 14x14: 44.4 and 46.3). With a multiple of the groups as the number
// of blocks each has one of them; there may be no such number.
constexpr Deal deal_in_turn(std::int64_t units, std::int64_t groups, std::int64_t resident,
                            bool one_group) {
  const std::int64_t longest = std::max<std::int64_t>((units + resident - 1) / resident, 1);
  std::int64_t blocks = (units + longest - 1) / longest;
  if (one_group) blocks = blocks / groups * groups;
  return {.blocks = blocks,
          .longest = static_cast<double>(blocks > 0 ? (units + blocks - 1) / blocks : 0),
          .in_turn = true,
          .one_group = one_group};
}

// The same, but that a block claims each unit after its first when it has room for it: of two
// multiprocessors the one that memory serves better gets more, and all end together (only copied,
// N128 C144 56x56 float16: 81.5 us, and 85.4 dealt out before). Blocks of one group have a queue of
// their own.
inline constexpr int kMaxQueues = 2048;
inline constexpr double kClaimed = 0.866;  // the time of bytes, against those of units in turn
constexpr Deal claimed(const Deal& in_turn, std::int64_t units, std::int64_t groups) {
  Deal deal = in_turn;
  deal.queues = static_cast<int>(in_turn.one_group ? groups : 1);
  deal.longest = static_cast<double>(units) / static_cast<double>(in_turn.blocks) + 0.5;
  return deal;
}
// With fewer units a block hardly gets one that another would have had. Claimed units are counted
// in 32 bits.
inline constexpr int kClaimedUnits = 6;
constexpr bool worth_claiming(const Deal& claims, std::int64_t units) {
  return claims.queues <= kMaxQueues && units >= kClaimedUnits * claims.blocks &&
         units < std::int64_t{1} << 31;
}

// A team of blocks for each group of channels: a cluster, whose blocks read each other's sums from
// shared memory, so that no second kernel has to add them. Clusters are of up to 8 blocks wherever
// there are any (CUDA programming guide, thread block clusters).
inline constexpr int kMaxTeam = 8;
// Of the blocks that fit the device at a time, teams may be this many: clusters need neighbouring
// multiprocessors, and where they are more, some wait for a second turn. N128 C768 7x7 k7 float16
// took 27 us with 3/4 of them, and 38 with 7/8.
inline constexpr double kTeamShare = 0.8;
constexpr Deal deal_teams(std::int64_t groups, std::int64_t per_group, int team) {
  return {.blocks = groups * team,
          .longest = static_cast<double>((per_group + team - 1) / team),
          .whole_groups = true,
          .team = team};
}
// Clusters, and kernels that begin before the one before them has ended.
constexpr bool is_sm_90(const Arch& arch) {
  return std::min(arch.compute_capability, arch.compiled_for) >= 90;
}

// Blocks of one multiprocessor that fit its shared memory.
constexpr int blocks_that_fit(const Arch& arch, int shared_bytes) {
  return shared_per_multiprocessor(arch) / (shared_bytes + shared_reserve(arch));
}

// A tiling with its deal and the time that it is expected to take; none yet while `us` is negative.
struct Candidate {
  Tiling tiling;
  Deal deal;
  double us = -1;
};

// Keeps the better of `best` and a tiling of which `resident` blocks fit a multiprocessor, dealt
// out as `estimate(deal)` likes best. Only blocks that are served can claim units.
template <typename Geometry, typename Estimate>
void consider_deals(Candidate& best, const Problem& problem, const Arch& arch, const Geometry& g,
                    const Tiling& tiling, int resident, const Estimate& estimate) {
  const auto consider = [&](const Deal& dealt) {
    const double us = estimate(dealt);
    if (best.us < 0 || us < best.us) best = {tiling, dealt, us};
  };
  const std::int64_t all = static_cast<std::int64_t>(resident) * arch.multiprocessors;
  const std::int64_t per_group = static_cast<std::int64_t>(g.image_blocks) * g.bands;
  if (problem.pass == Pass::backward_weight) {
    consider(deal_runs(g.groups, per_group, all, true));
    // The blocks leave their sums where units were loaded before.
    const bool room = std::int64_t{4} * g.channels * problem.sums() <= g.stage_bytes;
    const bool teams = is_sm_90(arch) && room && per_group < 1 << 28;  // see SmallDivisor
    for (int team = 2; teams && team <= std::min<std::int64_t>(kMaxTeam, per_group); ++team) {
      if (g.groups * static_cast<double>(team) <= kTeamShare * static_cast<double>(all))
        consider(deal_teams(g.groups, per_group, team));
    }
  } else if (g.bands == 1) {
    // Neighbouring bands share rows: N64 C128 256x512 k3 float32 took 3,010 us in runs, 3,340 in
    // turn.
    for (const bool one_group : {true, false}) {
      const Deal dealt = deal_in_turn(g.units, g.groups, all, one_group);
      if (dealt.blocks == 0) continue;
      consider(dealt);
      const Deal claims = claimed(dealt, g.units, g.groups);
      if (tiling.served && worth_claiming(claims, g.units)) consider(claims);
    }
  }
  consider(deal_runs(g.groups, per_group, all, false));
}

// Of a weight gradient.
template <typename Geometry>
constexpr Partials partials_of(const Problem& problem, const Geometry& g, std::int64_t blocks,
                               bool whole_groups) {
  return with_segments({.units = g.units,
                        .units_per_group = static_cast<std::int64_t>(g.image_blocks) * g.bands,
                        .blocks = blocks,
                        .channels = problem.channels,
                        .planes = g.channels,
                        .taps = static_cast<int>(problem.taps()),
                        .bias = problem.bias,
                        .whole = whole_groups});
}

// What a weight gradient reads, it is the last to read in most networks, and what the forward pass
// reads is wanted again much later, if at all. Where those lines go first, the L2 keeps what others
// left there, and need not write it back just now: in float16 the weight gradients of N128 C576
// 14x14 k3 took 40 us and then 34, of 56x56 k7 86 and then 80; 126 random forward passes below 80
// MB gain 2.5 %. Those of larger tensors lose as much, but with stride 2 they read four times what
// they write (float16 56x56 k5, 66 and 62). The largest gain nothing by it (weight gradient of
// float32 56x56 C144, 462 MB: 181 and 182), nor do bands, which share rows (112x112 stride 2: 283
// and 292). The gradient that an input gradient reads, the weight gradient will read next.
constexpr std::int64_t kLastUseBytes = 400 << 20;
constexpr std::int64_t kLastUseDenseBytes = 64 << 20;  // of a forward pass with stride 1

template <typename Geometry>
constexpr bool reads_last(const Problem& problem, const Geometry& g) {
  if (problem.pass == Pass::backward_input || g.bands > 1) return false;
  const bool dense = problem.pass == Pass::forward && problem.h.stride == 1;
  const std::int64_t bytes =
      (problem.input_numel() + problem.output_numel()) * size_of(problem.dtype);
  return bytes < (dense ? kLastUseDenseBytes : kLastUseBytes);
}

// The plan of the best tiling, of which `g` is the geometry.
template <typename Geometry>
Plan plan_of(const Kernel& kernel, const Problem& problem, const Arch& arch, const Candidate& best,
             const Geometry& g) {
  Plan plan;
  plan.kernel = &kernel;
  plan.blocks = best.deal.blocks;
  plan.threads = best.tiling.block_threads();
  plan.whole_groups = best.deal.whole_groups;
  plan.in_turn = best.deal.in_turn;
  plan.queues = best.deal.queues;
  plan.team = best.deal.team;
  plan.last_use = reads_last(problem, g);
  plan.tiling = best.tiling;
  plan.estimate_us = best.us;
  if (problem.pass == Pass::backward_weight && !plan.whole_groups) {
    plan.slices = plan.blocks;
    plan.sums_overlap = is_sm_90(arch);
    plan.workspace_bytes = partials_of(problem, g, plan.blocks, false).bytes();
  }
  return plan;
}

}  // namespace dwconv
