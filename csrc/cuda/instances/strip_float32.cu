#include "../strip.cuh"
#include "../strip_phases.cuh"

namespace dwconv::strip {

template <>
void launch<Pass::forward, DType::float32, Layout::nhwc>(const Problem& problem, const Plan& plan,
                                                         const Tensors& tensors,
                                                         cudaStream_t stream) {
  launch_convolve<DType::float32>(problem, plan, tensors, stream);
}

template <>
void launch<Pass::backward_input, DType::float32, Layout::nhwc>(const Problem& problem,
                                                                const Plan& plan,
                                                                const Tensors& tensors,
                                                                cudaStream_t stream) {
  launch_backward_input<DType::float32>(problem, plan, tensors, stream);
}

}  // namespace dwconv::strip
