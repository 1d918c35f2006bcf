// Launchers of the hankel family; defined under instances/ from hankel*.cuh.
#pragma once

#include "launcher.h"

namespace dwconv::hankel {

template <Pass pass, DType dtype, Layout layout>
void launch(const Problem& problem, const Plan& plan, const Tensors& tensors, cudaStream_t stream);

}  // namespace dwconv::hankel
