// Launchers of the Toeplitz family; defined under instances/ from toeplitz*.cuh.
#pragma once

#include "launcher.h"

namespace dwconv::toeplitz {

template <Pass pass, DType dtype, Layout layout>
void launch(const Problem& problem, const Plan& plan, const Tensors& tensors, cudaStream_t stream);

}  // namespace dwconv::toeplitz
