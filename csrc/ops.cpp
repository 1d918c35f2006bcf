// torch.ops.dwconv.*: the schemas, and the CUDA implementations: guard, allocate, plan, launch.
// CPU and fake implementations are in dwconv/_ops.py.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <optional>

#include "cuda/launch.h"
#include "plan.h"
#include "tensor.h"

// Lives in libtorch_cuda, which a CPU-only torch lacks: weak, so that this library loads there.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);

namespace dwconv {
namespace {

void* current_stream(int device) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
                  "dwconv: this build of torch has no CUDA");
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &stream) == AOTI_TORCH_SUCCESS,
                  "dwconv: torch did not tell the current stream of device ", device);
  return stream;
}

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
    workspace = empty({chosen.workspace_bytes}, {1}, ScalarType::Byte, like);
    tensors.workspace = workspace->mutable_data_ptr();
  }
  launch(problem, chosen, tensors, device, current_stream(device));
}

void* read(const Tensor& tensor) { return const_cast<void*>(tensor.const_data_ptr()); }

Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
               Sizes stride, Sizes padding, Sizes dilation) {
  const Layout layout = input.dim() == 4 ? layout_of(input) : Layout::nchw;
  const Sizes weight_size = sizes_of(weight);
  Problem problem = make_problem(Pass::forward, input, layout, sizes_of(input), weight_size,
                                 {std::move(stride), std::move(padding), std::move(dilation)});
  problem.bias = bias.has_value();
  check_matches(weight, "weight", weight_size, input);
  if (bias) check_matches(*bias, "bias", {problem.filters()}, input);

  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  Tensor output = empty_like(input, output_sizes(problem), layout);
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

Tensor backward_input(const Tensor& grad_output, const Tensor& weight, Sizes input_size,
                      Sizes stride, Sizes padding, Sizes dilation) {
  const Layout layout = grad_output.dim() == 4 ? layout_of(grad_output) : Layout::nchw;
  const Sizes weight_size = sizes_of(weight);
  const Problem problem =
      make_problem(Pass::backward_input, grad_output, layout, input_size, weight_size,
                   {std::move(stride), std::move(padding), std::move(dilation)});
  check_matches(grad_output, "grad_output", output_sizes(problem), grad_output);
  check_matches(weight, "weight", weight_size, grad_output);

  const torch::stable::accelerator::DeviceGuard guard(grad_output.get_device_index());
  Tensor grad_input = empty_like(grad_output, input_size, layout);
  if (problem.input_numel() == 0) return grad_input;
  const Tensor dense_grad = dense(grad_output, layout);
  const Tensor dense_weight = dense(weight, Layout::nchw);
  run(problem,
      {.input = grad_input.mutable_data_ptr(),
       .weight = read(dense_weight),
       .output = read(dense_grad)},
      grad_output);
  return grad_input;
}

Tensor backward_weight(const Tensor& grad_output, const Tensor& input, Sizes weight_size,
                       Sizes stride, Sizes padding, Sizes dilation) {
  const Layout layout = grad_output.dim() == 4 ? layout_of(grad_output) : Layout::nchw;
  const Sizes input_size = sizes_of(input);
  const Problem problem =
      make_problem(Pass::backward_weight, grad_output, layout, input_size, weight_size,
                   {std::move(stride), std::move(padding), std::move(dilation)});
  check_matches(grad_output, "grad_output", output_sizes(problem), grad_output);
  check_matches(input, "input", input_size, grad_output);

  const torch::stable::accelerator::DeviceGuard guard(grad_output.get_device_index());
  Tensor grad_weight = empty_like(grad_output, weight_size, Layout::nchw);
  if (problem.output_numel() == 0) return torch::stable::zero_(grad_weight);
  const Tensor dense_grad = dense(grad_output, layout);
  const Tensor dense_input = dense(input, layout);
  run(problem,
      {.input = read(dense_input),
       .weight = grad_weight.mutable_data_ptr(),
       .output = read(dense_grad)},
      grad_output);
  return grad_weight;
}

}  // namespace

STABLE_TORCH_LIBRARY(dwconv, library) {
  library.def(
      "forward(Tensor input, Tensor weight, Tensor? bias, int[] stride, SymInt[] padding, "
      "int[] dilation) -> Tensor");
  library.def(
      "backward_input(Tensor grad_output, Tensor weight, SymInt[] input_size, int[] stride, "
      "SymInt[] padding, int[] dilation) -> Tensor");
  library.def(
      "backward_weight(Tensor grad_output, Tensor input, SymInt[] weight_size, int[] stride, "
      "SymInt[] padding, int[] dilation) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(dwconv, CUDA, library) {
  library.impl("forward", TORCH_BOX(&forward));
  library.impl("backward_input", TORCH_BOX(&backward_input));
  library.impl("backward_weight", TORCH_BOX(&backward_weight));
}

}  // namespace dwconv
