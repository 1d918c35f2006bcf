// torch.ops.dwconv.*: the schemas, and the CUDA implementations: guard, allocate, plan, launch.
// CPU and fake implementations are in dwconv/_ops.py.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "cuda/launch.h"
#include "planner.h"
#include "stream.h"
#include "tensor.h"

namespace dwconv {
namespace {

using torch::stable::accelerator::DeviceGuard;

const Arch& arch_of(int device) {
  static thread_local std::vector<std::optional<Arch>> known;
  if (known.size() <= static_cast<size_t>(device)) known.resize(device + 1);
  if (!known[device]) known[device] = device_arch(device);
  return *known[device];
}

// Plans the problem and starts its kernel on the current stream.
void run(const Problem& problem, Tensors tensors, const Tensor& like) {
  const int device = like.get_device_index();
  const Plan chosen = plan(problem, arch_of(device), current_policy());
  std::optional<Tensor> workspace;
  if (chosen.workspace_bytes > 0) {
    workspace = empty(std::array{chosen.workspace_bytes}, Layout::nchw, like, ScalarType::Byte);
    tensors.workspace = workspace->mutable_data_ptr();
  }
  launch(problem, chosen, tensors, device, current_stream(device));
}

void* read(const Tensor& tensor) { return const_cast<void*>(tensor.const_data_ptr()); }

Tensor convolve(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                const Geometry& geometry) {
  const Size input_size = size_of(input.sizes(), "input");
  const Size weight_size = size_of(weight.sizes(), "weight");
  const Layout layout = layout_of(input);
  Problem problem = make_problem(Pass::forward, input, layout, input_size, weight_size, geometry);
  problem.bias = bias.has_value();
  check_matches(weight, "weight", weight_size, input);
  if (bias) check_matches(*bias, "bias", std::array{problem.filters()}, input);

  const DeviceGuard guard(input.get_device_index());
  Tensor output = empty(output_size(problem), layout, input);
  if (problem.output_numel() == 0) return output;
  const Tensor dense_input = dense(input, layout);
  const Tensor dense_weight = dense(weight, Layout::nchw);
  const std::optional<Tensor> dense_bias =
      bias ? std::optional(dense(*bias, Layout::nchw)) : std::nullopt;
  run(problem,
      {.input = read(dense_input),
       .weight = read(dense_weight),
       .output = output.mutable_data_ptr(),
       .bias = dense_bias ? read(*dense_bias) : nullptr},
      input);
  return output;
}

// `layout` is that of the tensors that are read; `dense_grad` has it.
Tensor gradient_of_input(const Tensor& dense_grad, const Tensor& weight, const Size& input_size,
                         const Geometry& geometry, Layout layout) {
  const Size weight_size = size_of(weight.sizes(), "weight");
  const Problem problem =
      make_problem(Pass::backward_input, dense_grad, layout, input_size, weight_size, geometry);
  check_matches(dense_grad, "grad_output", output_size(problem), dense_grad);
  check_matches(weight, "weight", weight_size, dense_grad);

  const DeviceGuard guard(dense_grad.get_device_index());
  Tensor grad_input = empty(input_size, layout, dense_grad);
  if (problem.input_numel() == 0) return grad_input;
  const Tensor dense_weight = dense(weight, Layout::nchw);
  run(problem,
      {.input = grad_input.mutable_data_ptr(),
       .weight = read(dense_weight),
       .output = read(dense_grad)},
      dense_grad);
  return grad_input;
}

// And of the bias where it is wanted: both are sums over the same output gradient. A filter has one
// channel: `weight_layout` says no more than what stride that axis gets, see lying_as in _ops.py.
std::pair<Tensor, Tensor> gradients_of_weight(const Tensor& dense_grad, const Tensor& input,
                                              const Size& weight_size, const Geometry& geometry,
                                              Layout layout, Layout weight_layout, bool bias) {
  const Size input_size = size_of(input.sizes(), "input");
  Problem problem =
      make_problem(Pass::backward_weight, dense_grad, layout, input_size, weight_size, geometry);
  problem.bias = bias;
  check_matches(dense_grad, "grad_output", output_size(problem), dense_grad);
  check_matches(input, "input", input_size, dense_grad);

  const DeviceGuard guard(dense_grad.get_device_index());
  Tensor grad_weight = empty(weight_size, weight_layout, dense_grad);
  Tensor grad_bias =
      bias ? empty(std::array{problem.filters()}, Layout::nchw, dense_grad) : Tensor();
  if (problem.output_numel() == 0) {
    torch::stable::zero_(grad_weight);
    if (bias) torch::stable::zero_(grad_bias);
    return {grad_weight, grad_bias};
  }
  const Tensor dense_input = dense(input, layout);
  run(problem,
      {.input = read(dense_input),
       .weight = grad_weight.mutable_data_ptr(),
       .output = read(dense_grad),
       .bias = bias ? grad_bias.mutable_data_ptr() : nullptr},
      dense_grad);
  return {grad_weight, grad_bias};
}

// The operators.

Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
               const List& stride, const List& padding, const List& dilation) {
  return convolve(input, weight, bias, geometry_of(stride, padding, dilation));
}

Tensor forward_packed(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                      int64_t geometry) {
  return convolve(input, weight, bias, geometry_of(geometry));
}

Tensor backward_input(const Tensor& grad_output, const Tensor& weight, const List& input_size,
                      const List& stride, const List& padding, const List& dilation) {
  const Layout layout = layout_of(grad_output);
  return gradient_of_input(dense(grad_output, layout), weight, size_of(input_size, "input_size"),
                           geometry_of(stride, padding, dilation), layout);
}

Tensor backward_weight(const Tensor& grad_output, const Tensor& input, const List& weight_size,
                       const List& stride, const List& padding, const List& dilation) {
  const Layout layout = layout_of(grad_output);
  return gradients_of_weight(dense(grad_output, layout), input, size_of(weight_size, "weight_size"),
                             geometry_of(stride, padding, dilation), layout, Layout::nchw, false)
      .first;
}

// Those of all gradients that are wanted: bit 0 of `wanted` is the input's, then weight's, bias's.
// The weight's has the strides of the weight.
std::tuple<Tensor, Tensor, Tensor> backward_packed(const Tensor& grad_output, const Tensor& input,
                                                   const Tensor& weight, int64_t geometry,
                                                   int64_t wanted) {
  const Size input_size = size_of(input.sizes(), "input");
  const Size weight_size = size_of(weight.sizes(), "weight");
  const Layout layout = layout_of(input);
  size_of(grad_output.sizes(), "grad_output");  // four, as `dense` wants them
  const Tensor grad = dense(grad_output, layout);
  const Geometry unpacked = geometry_of(geometry);
  const bool bias = wanted & 4;
  Tensor of_input, of_weight, of_bias;
  if (wanted & 1) of_input = gradient_of_input(grad, weight, input_size, unpacked, layout);
  if (wanted & 2) {
    const Layout weight_layout = weight.strides()[1] == 1 ? Layout::nhwc : Layout::nchw;
    std::tie(of_weight, of_bias) =
        gradients_of_weight(grad, input, weight_size, unpacked, layout, weight_layout, bias);
  } else if (bias) {
    of_bias = torch::stable::sum(grad, std::vector<int64_t>{0, 2, 3});
  }
  return {of_input, of_weight, of_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY(dwconv, library) {
  library.def(
      "forward(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, "
      "int[] dilation) -> Tensor");
  library.def(
      "backward_input(Tensor grad_output, Tensor weight, SymInt[] input_size, int[] stride, "
      "int[] padding, int[] dilation) -> Tensor");
  library.def(
      "backward_weight(Tensor grad_output, Tensor input, SymInt[] weight_size, int[] stride, "
      "int[] padding, int[] dilation) -> Tensor");
  library.def("forward_packed(Tensor input, Tensor weight, Tensor? bias, int geometry) -> Tensor");
  library.def(
      "backward_packed(Tensor grad_output, Tensor input, Tensor weight, int geometry, int wanted) "
      "-> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(dwconv, CUDA, library) {
  library.impl("forward", TORCH_BOX(&forward));
  library.impl("backward_input", TORCH_BOX(&backward_input));
  library.impl("backward_weight", TORCH_BOX(&backward_weight));
  library.impl("forward_packed", TORCH_BOX(&forward_packed));
  library.impl("backward_packed", TORCH_BOX(&backward_packed));
}

}  // namespace dwconv
