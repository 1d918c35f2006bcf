// Launchers of the outer family; defined under instances/ from outer_wgrad.cuh.
#pragma once

#include "launcher.h"

namespace dwconv::outer {

template <Pass pass, DType dtype, Layout layout>
void launch(const Problem& problem, const Plan& plan, const Tensors& tensors, cudaStream_t stream);

}  // namespace dwconv::outer
