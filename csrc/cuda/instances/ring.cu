#include "../ring.cuh"

#include "../ring_phases.cuh"

namespace dwconv::ring {

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

template <>
void launch<Pass::forward, DType::float16, Layout::nhwc>(const Problem& problem, const Plan& plan,
                                                         const Tensors& tensors,
                                                         cudaStream_t stream) {
  launch_convolve<DType::float16>(problem, plan, tensors, stream);
}

template <>
void launch<Pass::backward_input, DType::float16, Layout::nhwc>(const Problem& problem,
                                                                const Plan& plan,
                                                                const Tensors& tensors,
                                                                cudaStream_t stream) {
  launch_backward_input<DType::float16>(problem, plan, tensors, stream);
}

template <>
void launch<Pass::forward, DType::bfloat16, Layout::nhwc>(const Problem& problem, const Plan& plan,
                                                          const Tensors& tensors,
                                                          cudaStream_t stream) {
  launch_convolve<DType::bfloat16>(problem, plan, tensors, stream);
}

template <>
void launch<Pass::backward_input, DType::bfloat16, Layout::nhwc>(const Problem& problem,
                                                                 const Plan& plan,
                                                                 const Tensors& tensors,
                                                                 cudaStream_t stream) {
  launch_backward_input<DType::bfloat16>(problem, plan, tensors, stream);
}

}  // namespace dwconv::ring
