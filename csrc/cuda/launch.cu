#include "launch.h"

#include "banded.h"
#include "batched.h"
#include "check.cuh"
#include "columns.h"
#include "dense.h"
#include "diagonal.h"
#include "direct.h"
#include "generic.h"
#include "hankel.h"
#include "outer.h"
#include "plane.h"
#include "pointwise.h"
#include "ring.h"
#include "strip.h"
#include "tile.h"
#include "toeplitz.h"
#include "transpose.h"

#define DWCONV_TEXT(x) #x
#define DWCONV_TEXT_OF(x) DWCONV_TEXT(x)

namespace dwconv {
namespace {

// In the order of the table, so that a kernel's row is its index.
constexpr Launcher* kLaunchers[] = {
#define DWCONV_KERNEL(family, pass, dtype, layout) \
  &family::launch<Pass::pass, DType::dtype, Layout::layout>,
#include "../kernels.inc"
};

// All kernels are compiled for the same architectures.
__global__ void probe() {}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "device attributes");
  return value;
}

// `problem` is the contiguous one. Its images are the first of the workspace.
void launch_transposed(const Problem& problem, const Plan& plan, const Tensors& tensors,
                       cudaStream_t stream) {
  const TransposedImages images(problem);
  auto* workspace = static_cast<char*>(tensors.workspace);
  Tensors contiguous = tensors;
  contiguous.input = workspace;
  contiguous.output = workspace + images.output;
  contiguous.workspace = workspace + images.end;
  const Matrices input = input_pixels(problem), output = output_pixels(problem);
  const std::int64_t bytes = size_of(problem.dtype);
  if (problem.pass != Pass::backward_input)
    transpose(input, bytes, tensors.input, contiguous.input, stream);
  if (problem.pass != Pass::forward)
    transpose(output, bytes, tensors.output, contiguous.output, stream);
  kLaunchers[plan.kernel->row](problem, plan, contiguous, stream);
  if (problem.pass == Pass::forward)
    transpose(output.transposed(), bytes, contiguous.output, tensors.output, stream);
  if (problem.pass == Pass::backward_input)
    transpose(input.transposed(), bytes, contiguous.input, tensors.input, stream);
}

}  // namespace

Arch device_arch(int device) {
  int before = -1;
  check(cudaGetDevice(&before), "current device");
  check(cudaSetDevice(device), "set device");
  cudaFuncAttributes code{};
  check(cudaFuncGetAttributes(&code, probe), "kernel attributes");
  check(cudaSetDevice(before), "set device");
  return {attribute(cudaDevAttrComputeCapabilityMajor, device) * 10 +
              attribute(cudaDevAttrComputeCapabilityMinor, device),
          attribute(cudaDevAttrMultiProcessorCount, device), code.ptxVersion};
}

void launch(const Problem& problem, const Plan& plan, const Tensors& tensors, int device,
            void* stream) {
  // torch's CUDA runtime and ours each remember a current device: make ours follow the tensors.
  int current = -1;
  check(cudaGetDevice(&current), "current device");
  if (current != device) check(cudaSetDevice(device), "set device");
  Problem planned = problem;
  planned.layout = plan.kernel->layout;  // where both are the same, the planner has chosen
  const auto on = static_cast<cudaStream_t>(stream);
  if (plan.transposed) return launch_transposed(planned, plan, tensors, on);
  kLaunchers[plan.kernel->row](planned, plan, tensors, on);
}

const char* nvcc_version() {
  return DWCONV_TEXT_OF(__CUDACC_VER_MAJOR__) "." DWCONV_TEXT_OF(
      __CUDACC_VER_MINOR__) "." DWCONV_TEXT_OF(__CUDACC_VER_BUILD__);
}

}  // namespace dwconv
