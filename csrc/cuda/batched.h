// Launchers of the batched family; defined under instances/ from batched.cuh.
#pragma once

#include "launcher.h"

namespace dwconv::batched {

template <Pass pass, DType dtype, Layout layout>
void launch(const Problem& problem, const Plan& plan, const Tensors& tensors, cudaStream_t stream);

}  // namespace dwconv::batched
