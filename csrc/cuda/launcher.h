// The form of every family's launchers.
#pragma once

#include <cuda_runtime.h>

#include "launch.h"

namespace dwconv {

// Starts the planned kernel on the stream and checks that it started.
using Launcher = void(const Problem&, const Plan&, const Tensors&, cudaStream_t);

}  // namespace dwconv
