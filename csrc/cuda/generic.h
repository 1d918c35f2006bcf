// Launchers of the generic family; defined by generic.cuh, instantiated under instances/.
#pragma once

#include "launcher.h"

namespace dwconv::generic {

template <Pass pass, DType dtype, Layout layout>
void launch(const Problem& problem, const Plan& plan, const Tensors& tensors, cudaStream_t stream);

}  // namespace dwconv::generic
