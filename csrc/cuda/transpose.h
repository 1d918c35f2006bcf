// Transposes matrices on the device.
#pragma once

#include <cuda_runtime.h>

#include "../transpose.h"

namespace dwconv {

// `source` holds `matrices`, `result` then their transposes; elements of 2 or 4 bytes.
void transpose(const Matrices& matrices, std::int64_t element_bytes, const void* source,
               void* result, cudaStream_t stream);

}  // namespace dwconv
