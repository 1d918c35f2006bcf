// The stream that torch works on.
#pragma once

namespace dwconv {

// Of a CUDA device; throws where torch, or this library, has no CUDA.
void* current_stream(int device);

}  // namespace dwconv
