// How a launch's units of work are dealt out: in turn, or equal runs of neighbours, one for each
// block.
#pragma once

#include <cstdint>

#include "../plan.h"
#include "divide.cuh"

namespace dwconv {

__host__ __device__ inline std::int64_t run_begin(std::int64_t units, std::int64_t block,
                                                  std::int64_t blocks) {
  return units * block / blocks;
}

// A unit of work: a group of channels, an image (or a block of them), a band of rows.
struct Unit {
  int group, image, band;
};

// Rows of an image: [first, last), first <= last.
struct RowRange {
  int first;
  int last;
  __device__ int count() const { return last - first; }
  __device__ bool holds(int row) const {
    return static_cast<unsigned>(row - first) < static_cast<unsigned>(last - first);
  }
};

// What each block of a launch has, with the divisions made ready by the host.
//
// In turn, units are counted as they lie in memory: bands, groups, images. In runs, images come
// before groups, so that a block has its channels for many units. A team has a run, the units of a
// group, and its blocks take them in turn.
class Dealer {
 public:
  // With whole groups all units of a group are in one run.
  Dealer(const Plan& plan, std::int64_t units, int groups, int images, int bands)
      : units_(units),
        piece_(plan.whole_groups ? static_cast<std::int64_t>(images) * bands : 1),
        pieces_(units / piece_),
        runs_(plan.blocks / plan.team),
        bands_(bands),
        middle_(plan.in_turn ? groups : images),
        team_(plan.team),
        in_turn_(plan.in_turn) {
    const std::int64_t step = plan.in_turn ? plan.blocks : plan.team;
    step_band_ = static_cast<int>(step % bands);
    step_middle_ = static_cast<int>(step / bands % middle_.value());
    step_outer_ = static_cast<int>(step / bands / middle_.value());
  }

  __device__ Unit first(std::int64_t block) const {
    int run = static_cast<int>(block);
    const int rank = team_.remainder(run);
    return at(in_turn_ ? block : begin(run) + rank);
  }
  __device__ Unit at(std::int64_t index) const {
    const std::int64_t rest = bands_.quotient(index);
    const std::int64_t outer = middle_.quotient(rest);
    const int middle = static_cast<int>(rest - outer * middle_.value());
    const int band = static_cast<int>(index - rest * bands_.value());
    if (in_turn_) return {middle, static_cast<int>(outer), band};
    return {static_cast<int>(outer), middle, band};
  }
  // Units of a block. Never 2^31 of them: they would not fit any memory.
  __device__ int count(std::int64_t block) const {
    if (in_turn_) return static_cast<int>(runs_.quotient(units_ - block + runs_.value() - 1));
    int run = static_cast<int>(block);
    const int rank = team_.remainder(run);
    return team_.quotient(static_cast<int>(begin(run + 1) - begin(run)) - rank + team_.value() - 1);
  }
  // To the block's next unit, digit by digit: all warps of a block would wait for a division.
  __device__ void advance(Unit& unit) const {
    const int carry = add(unit.band, step_band_, static_cast<int>(bands_.value()));
    const int middles = static_cast<int>(middle_.value());
    if (in_turn_) {
      unit.image += step_outer_ + add(unit.group, step_middle_ + carry, middles);
    } else {
      unit.group += step_outer_ + add(unit.image, step_middle_ + carry, middles);
    }
  }
  // So many units on. Who needs a unit that is yet to come finds it anew each time: registers are
  // what the kernels have least of.
  __device__ void advance(Unit& unit, int count) const {
#pragma unroll 1
    for (int i = 0; i < count; ++i)
      advance(unit);
  }

 private:
  // Of a run, counted by teams.
  __device__ std::int64_t begin(std::int64_t run) const {
    return runs_.quotient(pieces_ * run) * piece_;
  }
  // Adds to a digit and returns what is carried.
  __device__ static int add(int& digit, int step, int base) {
    digit += step;
    const int carry = digit >= base ? 1 : 0;
    digit -= carry * base;
    return carry;
  }

  std::int64_t units_, piece_, pieces_;
  Divisor runs_, bands_, middle_;
  int step_band_, step_middle_, step_outer_;
  SmallDivisor team_;
  bool in_turn_;
};

}  // namespace dwconv
