// Where launches find the counters that their blocks claim units by.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../plan.h"

namespace dwconv {

// A counter for each of the plan's queues, all of them zero whenever a launch on this stream of the
// current device begins. Null where nothing is claimed, or where no such promise can be kept: for a
// graph, whose launches may run beside any others, and for more streams than there is room for.
std::uint32_t* claim_counters(const Plan& plan, cudaStream_t stream);

}  // namespace dwconv
