// Launchers of the dense family; defined under instances/ from dense.cuh.
#pragma once

#include "launcher.h"

namespace dwconv::dense {

template <Pass pass, DType dtype, Layout layout>
void launch(const Problem& problem, const Plan& plan, const Tensors& tensors, cudaStream_t stream);

}  // namespace dwconv::dense
