// Launchers of the tile family; defined by tile*.cuh, instantiated under instances/.
#pragma once

#include "launcher.h"

namespace dwconv::tile {

template <Pass pass, DType dtype, Layout layout>
void launch(const Problem& problem, const Plan& plan, const Tensors& tensors, cudaStream_t stream);

}  // namespace dwconv::tile
