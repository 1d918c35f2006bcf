// Units of work that are not dealt out before: a block claims each when it has room for it.
#pragma once

#include <cstdint>

#include "../plan.h"
#include "divide.cuh"

namespace dwconv {

// What a launch's blocks claim their units from, by one thread each. Unit n and block n are of
// queue n modulo the number of queues. A block begins with the unit of its own number; those after
// the blocks' are claimed one by one, by a counter for each queue. Every block claims once in vain,
// so a queue has as many claims as units: the last one leaves its counter at zero, as it was found.
class Claims {
 public:
  static constexpr std::uint32_t kFirst = ~0u;  // the number of a block that has claimed nothing

  // Without counters nothing is claimed.
  Claims(const Plan& plan, std::int64_t units, std::uint32_t* counters) : counters_(counters) {
    if (counters == nullptr) return;
    queues_ = SmallDivisor(plan.queues);
    firsts_ = static_cast<std::uint32_t>(plan.blocks / plan.queues);
    units_ = static_cast<std::uint32_t>(units / plan.queues);
  }

  __device__ bool any() const { return counters_ != nullptr; }
  // The unit that a number stands for, counted as they lie in memory; -1: none is left. The next
  // number is asked for now: it takes its time to come.
  __device__ int next(std::uint32_t& number) const {
    if (number == kNone) return -1;
    int rank = static_cast<int>(blockIdx.x);  // of the unit in its queue
    const int queue = queues_.remainder(rank);
    std::uint32_t* counter = counters_ + queue;
    if (number != kFirst) {
      rank = static_cast<int>(firsts_ + number);
      if (number == units_ - 1) *counter = 0;
      if (number >= units_ - firsts_) {
        number = kNone;
        return -1;
      }
    }
    number = atomicAdd(counter, 1u);
    return queue + rank * queues_.value();
  }

 private:
  static constexpr std::uint32_t kNone = kFirst - 1;  // the block has claimed in vain

  std::uint32_t* counters_;
  SmallDivisor queues_;
  std::uint32_t units_ = 0, firsts_ = 0;  // of a queue
};

}  // namespace dwconv
