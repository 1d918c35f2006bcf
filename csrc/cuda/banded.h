// Launchers of the banded family; defined under instances/ from banded*.cuh.
#pragma once

#include "launcher.h"

namespace dwconv::banded {

template <Pass pass, DType dtype, Layout layout>
void launch(const Problem& problem, const Plan& plan, const Tensors& tensors, cudaStream_t stream);

}  // namespace dwconv::banded
