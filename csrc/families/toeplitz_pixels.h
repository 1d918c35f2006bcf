// The Toeplitz family's tilings of channels_last images.
#pragma once

#include "toeplitz.h"

namespace dwconv::toeplitz {

// The tiling with the lowest estimate; us < 0 where none fits.
Candidate search_pixels(const Problem& problem, const Arch& arch);

}  // namespace dwconv::toeplitz
