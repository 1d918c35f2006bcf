#include "../pointwise.cuh"

namespace dwconv::pointwise {

template Launcher launch<Pass::forward, DType::float16, Layout::nchw>;
template Launcher launch<Pass::backward_weight, DType::float16, Layout::nchw>;
template Launcher launch<Pass::forward, DType::float16, Layout::nhwc>;
template Launcher launch<Pass::backward_input, DType::float16, Layout::nhwc>;

template Launcher launch<Pass::forward, DType::bfloat16, Layout::nchw>;
template Launcher launch<Pass::backward_weight, DType::bfloat16, Layout::nchw>;
template Launcher launch<Pass::forward, DType::bfloat16, Layout::nhwc>;
template Launcher launch<Pass::backward_input, DType::bfloat16, Layout::nhwc>;

}  // namespace dwconv::pointwise
