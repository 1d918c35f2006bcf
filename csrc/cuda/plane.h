// Launchers of the plane family; defined by plane*.cuh, instantiated under instances/.
#pragma once

#include "launcher.h"

namespace dwconv::plane {

template <Pass pass, DType dtype, Layout layout>
void launch(const Problem& problem, const Plan& plan, const Tensors& tensors, cudaStream_t stream);

}  // namespace dwconv::plane
