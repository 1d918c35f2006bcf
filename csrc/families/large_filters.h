// What the families of large filters have in common.
#pragma once

#include <optional>
#include <string>

#include "unit.h"

namespace dwconv {

// They all take plain convolutions alone.
inline std::optional<std::string> refuse_all_but_plain(const Problem& problem) {
  const Axis &h = problem.h, &w = problem.w;
  if (problem.multiplier != 1) return "it takes one filter per channel";
  if (h.stride != 1 || w.stride != 1) return "it takes stride 1";
  if (h.dilation != 1 || w.dilation != 1) return "it takes no dilation";
  return std::nullopt;
}

// Sides and products of sizes stay below what they count in 32 bits.
inline std::optional<std::string> refuse_too_large(const Problem& problem) {
  const Axis &h = problem.h, &w = problem.w;
  constexpr std::int64_t kMaxSide = 1 << 14;
  constexpr std::int64_t kMaxCount = 1 << 24;
  if (std::max({h.input, w.input, h.output(), w.output(), h.kernel, w.kernel}) > kMaxSide ||
      std::max({h.pad_before, h.pad_after, w.pad_before, w.pad_after}) > kMaxSide ||
      problem.batch >= kMaxCount || problem.channels >= kMaxCount) {
    return "images, batch or channels are too large for it";
  }
  return std::nullopt;
}

// Filters that other families take are theirs: of 80 random passes with filters of 7 x 3 to 11 x 11
// 6 were faster in banded, by 5 to 26 %, and 70 took up to 5 times as long.
inline constexpr double kSmallFilters = 2;
inline constexpr int kSmallFilter = 11;
inline void leave_small_filters(Plan& plan, const Problem& problem) {
  if (std::max(problem.h.kernel, problem.w.kernel) <= kSmallFilter) {
    plan.estimate_us *= kSmallFilters;
  }
}

// Whether each result is made of all elements of its image: then no zero stands for a tap.
inline bool reaches_all(const Problem& problem) {
  const auto reaches = [](const Window& axis) {
    return axis.pad >= axis.result - 1 && axis.kernel - axis.pad >= axis.source;
  };
  return reaches(window_of(problem, problem.h)) && reaches(window_of(problem, problem.w));
}

}  // namespace dwconv
