// Launchers of the direct family; defined under instances/ from direct*.cuh.
#pragma once

#include "launcher.h"

namespace dwconv::direct {

template <Pass pass, DType dtype, Layout layout>
void launch(const Problem& problem, const Plan& plan, const Tensors& tensors, cudaStream_t stream);

}  // namespace dwconv::direct
