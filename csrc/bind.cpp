// dwconv._C: build facts and the planner, for Python. No tensors, no torch header.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "cuda/launch.h"
#include "planner.h"
#include "problem_text.h"

namespace py = pybind11;

// In a source that setup.py writes.
extern const char dwconv_version[];
extern const char dwconv_commit[];

namespace dwconv {
namespace {

template <typename Enum, size_t count>
Enum parse(const std::array<std::string_view, count>& names, const std::string& name,
           const char* what) {
  for (size_t i = 0; i < count; ++i) {
    if (names[i] == name) return static_cast<Enum>(i);
  }
  throw std::invalid_argument(std::string(what) + " has no value '" + name + "'");
}

// The two axes of a pair such as stride=(h, w).
using Pair = std::array<std::int64_t, 2>;

Problem make_problem(const std::string& pass, const std::string& dtype, const std::string& layout,
                     const std::array<std::int64_t, 4>& input_size, std::int64_t out_channels,
                     const Pair& kernel_size, const Pair& stride,
                     const std::array<std::int64_t, 4>& padding, const Pair& dilation, bool bias) {
  const auto [batch, channels, height, width] = input_size;
  if (channels < 1 || out_channels < 1 || out_channels % channels != 0) {
    throw std::invalid_argument("out_channels must be a positive multiple of the input's channels");
  }
  const auto axis = [&](int i, std::int64_t input) {
    return Axis{.input = input,
                .kernel = kernel_size[i],
                .stride = stride[i],
                .pad_before = padding[2 * i],
                .pad_after = padding[2 * i + 1],
                .dilation = dilation[i]};
  };
  return {.pass = parse<Pass>(kPassNames, pass, "pass"),
          .dtype = parse<DType>(kDTypeNames, dtype, "dtype"),
          .layout = parse<Layout>(kLayoutNames, layout, "layout"),
          .bias = bias,
          .batch = batch,
          .channels = channels,
          .multiplier = out_channels / channels,
          .h = axis(0, height),
          .w = axis(1, width)};
}

int row_of(const std::optional<std::string>& kernel) {
  if (!kernel) return -1;
  const Kernel* found = find_kernel(*kernel);
  if (found == nullptr) {
    throw std::invalid_argument("there is no kernel '" + *kernel + "'");
  }
  return found->row;
}

py::dict to_dict(const Plan& plan) {
  py::dict out;
  out["kernel"] = plan.kernel->name;
  out["blocks"] = plan.blocks;
  out["threads"] = plan.threads;
  out["slices"] = plan.slices;
  out["workspace_bytes"] = plan.workspace_bytes;
  out["transposed"] = plan.transposed;
  out["sums_overlap"] = plan.sums_overlap;
  out["in_turn"] = plan.in_turn;
  out["queues"] = plan.queues;
  out["team"] = plan.team;
  out["last_use"] = plan.last_use;
  out["estimate_us"] = plan.estimate_us;
  py::dict tiling;
  tiling["planes"] = plan.tiling.planes;
  tiling["images"] = plan.tiling.images;
  tiling["rows"] = plan.tiling.rows;
  tiling["stages"] = plan.tiling.stages;
  tiling["threads"] = plan.tiling.threads;
  tiling["tile_rows"] = plan.tiling.tile_rows;
  tiling["columns"] = plan.tiling.columns;
  tiling["width"] = plan.tiling.width;
  tiling["places"] = plan.tiling.places;
  tiling["served"] = plan.tiling.served;
  out["tiling"] = tiling;
  return out;
}

py::dict to_dict(const Choice& choice) {
  py::dict out = to_dict(choice.plan);
  py::list runners_up;
  for (const Plan& plan : choice.runners_up)
    runners_up.append(to_dict(plan));
  py::dict refusals;
  for (const Refusal& refusal : choice.refusals)
    refusals[refusal.kernel->name] = refusal.reason;
  out["runners_up"] = runners_up;
  out["refusals"] = refusals;
  return out;
}

py::dict to_dict(const Kernel& kernel) {
  py::dict out;
  out["name"] = kernel.name;
  out["pass"] = name_of(kernel.pass);
  out["dtype"] = name_of(kernel.dtype);
  out["layout"] = name_of(kernel.layout);
  return out;
}

py::dict build_info() {
  py::dict out;
  out["version"] = static_cast<const char*>(dwconv_version);
  out["commit"] = static_cast<const char*>(dwconv_commit);
  out["nvcc"] = nvcc_version();
  out["architectures"] = DWCONV_ARCHITECTURES;
  out["torch_headers"] = DWCONV_TORCH_HEADERS;
  out["torch_target"] = DWCONV_TORCH_TARGET;
  return out;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Build facts and the planner. Importing it registers torch.ops.dwconv.";
  module.def("build_info", &build_info, "What this library was built with.");
  module.def(
      "kernels",
      [] {
        py::list out;
        for (const Kernel& kernel : kernels())
          out.append(to_dict(kernel));
        return out;
      },
      "The table of kernels: name, pass, dtype and layout of each row.");
  module.def(
      "plan",
      [](const std::string& pass, const std::string& dtype, const std::string& layout,
         const std::array<std::int64_t, 4>& input_size, std::int64_t out_channels,
         const Pair& kernel_size, const Pair& stride, const std::array<std::int64_t, 4>& padding,
         const Pair& dilation, bool bias, int compute_capability, int multiprocessors,
         const std::optional<int>& compiled_for, const std::optional<std::string>& kernel,
         bool strict_nonfinite) {
        const Problem problem = make_problem(pass, dtype, layout, input_size, out_channels,
                                             kernel_size, stride, padding, dilation, bias);
        py::dict out = to_dict(
            choose(problem,
                   {compute_capability, multiprocessors, compiled_for.value_or(compute_capability)},
                   {.forced_row = row_of(kernel), .strict_nonfinite = strict_nonfinite}));
        out["output_size"] = py::make_tuple(problem.h.output(), problem.w.output());
        return out;
      },
      "The planner's choice for a problem on a stated device, with runners-up and refusals.",
      py::kw_only(), py::arg("pass_"), py::arg("dtype"), py::arg("layout"), py::arg("input_size"),
      py::arg("out_channels"), py::arg("kernel_size"), py::arg("stride") = Pair{1, 1},
      py::arg("padding") = std::array<std::int64_t, 4>{0, 0, 0, 0},
      py::arg("dilation") = Pair{1, 1}, py::arg("bias") = false, py::arg("compute_capability") = 90,
      py::arg("multiprocessors") = 132, py::arg("compiled_for") = py::none(),
      py::arg("kernel") = py::none(), py::arg("strict_nonfinite") = false);
  module.def(
      "force_kernel",
      [](const std::optional<std::string>& kernel) {
        Policy policy = current_policy();
        policy.forced_row = row_of(kernel);
        set_current_policy(policy);
      },
      "Makes the operators run this row of the table, or choose again (None). For tests.",
      py::arg("kernel"));
  module.def(
      "set_strict_nonfinite",
      [](bool enabled) {
        Policy policy = current_policy();
        policy.strict_nonfinite = enabled;
        set_current_policy(policy);
      },
      "Whether only kernels are chosen that spread Inf and NaN as a direct sum does.",
      py::arg("enabled"));
  module.def(
      "strict_nonfinite", [] { return current_policy().strict_nonfinite; },
      "What set_strict_nonfinite was last told.");
  module.def(
      "plan_cache",
      [] {
        const CacheStatistics statistics = cache_statistics();
        py::dict out;
        out["hits"] = statistics.hits;
        out["misses"] = statistics.misses;
        out["size"] = statistics.size;
        return out;
      },
      "Hits, misses and size of the cache of plans.");
  module.def("clear_plan_cache", &clear_cache, "Forgets all plans.");
}

}  // namespace dwconv
