// In place of all that needs CUDA, where there is none: on Windows and macOS, or by DWCONV_CUDA=0.
// CPU tensors never come here.
#include <stdexcept>

#include "cuda/launch.h"
#include "stream.h"

namespace dwconv {
namespace {

[[noreturn]] void refuse() {
  throw std::runtime_error(
      "this dwconv was built without CUDA, for CPU tensors alone: install its wheel for Linux, or "
      "build it there without DWCONV_CUDA=0");
}

}  // namespace

void* current_stream(int) { refuse(); }
Arch device_arch(int) { refuse(); }
void launch(const Problem&, const Plan&, const Tensors&, int, void*) { refuse(); }
const char* nvcc_version() { return "none"; }

}  // namespace dwconv
