// Launchers of the lines family; defined under instances/ from lines_wgrad.cuh.
#pragma once

#include "launcher.h"

namespace dwconv::lines {

template <Pass pass, DType dtype, Layout layout>
void launch(const Problem& problem, const Plan& plan, const Tensors& tensors, cudaStream_t stream);

}  // namespace dwconv::lines
