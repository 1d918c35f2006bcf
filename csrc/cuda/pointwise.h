// Launchers of the pointwise family; defined by pointwise.cuh, instantiated under instances/.
#pragma once

#include "launcher.h"

namespace dwconv::pointwise {

template <Pass pass, DType dtype, Layout layout>
void launch(const Problem& problem, const Plan& plan, const Tensors& tensors, cudaStream_t stream);

}  // namespace dwconv::pointwise
