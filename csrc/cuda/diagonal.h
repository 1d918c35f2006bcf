// Launchers of the diagonal family; defined by diagonal.cuh and its like, instantiated under
// instances/.
#pragma once

#include "launcher.h"

namespace dwconv::diagonal {

template <Pass pass, DType dtype, Layout layout>
void launch(const Problem& problem, const Plan& plan, const Tensors& tensors, cudaStream_t stream);

}  // namespace dwconv::diagonal
