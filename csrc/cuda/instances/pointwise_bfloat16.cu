#include "../pointwise.cuh"

namespace dwconv::pointwise {

template Launcher launch<Pass::forward, DType::bfloat16, Layout::nchw>;
template Launcher launch<Pass::backward_weight, DType::bfloat16, Layout::nchw>;

}  // namespace dwconv::pointwise
