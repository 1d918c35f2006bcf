// Launchers of the strip family; defined by strip.cuh and its like, instantiated under instances/.
#pragma once

#include "launcher.h"

namespace dwconv::strip {

template <Pass pass, DType dtype, Layout layout>
void launch(const Problem& problem, const Plan& plan, const Tensors& tensors, cudaStream_t stream);

}  // namespace dwconv::strip
