// Launchers of the columns family; defined by columns_launch.cuh, instantiated under
// instances/.
#pragma once

#include "launcher.h"

namespace dwconv::columns {

template <Pass pass, DType dtype, Layout layout>
void launch(const Problem& problem, const Plan& plan, const Tensors& tensors, cudaStream_t stream);

}  // namespace dwconv::columns
