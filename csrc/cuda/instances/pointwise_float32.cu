#include "../pointwise.cuh"

namespace dwconv::pointwise {

template Launcher launch<Pass::forward, DType::float32, Layout::nchw>;
template Launcher launch<Pass::backward_weight, DType::float32, Layout::nchw>;

}  // namespace dwconv::pointwise
