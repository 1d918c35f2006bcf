// The problem: what is to be computed, in plain numbers. No torch, no CUDA.
#pragma once

#include <cstdint>

namespace dwconv {

// A convolution ties three tensors together: input, weight, output (or their gradients).
// Each pass computes one of them from the other two.
enum class Pass : std::uint8_t { forward, backward_input, backward_weight };
enum class DType : std::uint8_t { float32, float16, bfloat16, float64 };
enum class Layout : std::uint8_t { nchw, nhwc };

constexpr std::int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::float64:
      return 8;
    case DType::float32:
      return 4;
    default:
      return 2;
  }
}

// Sums are kept in float32, for float64 in float64.
constexpr std::int64_t accumulator_size(DType dtype) { return dtype == DType::float64 ? 8 : 4; }

// One spatial axis of the convolution. Sizes are in elements.
struct Axis {
  std::int64_t input = 1;
  std::int64_t kernel = 1;
  std::int64_t stride = 1;
  std::int64_t pad_before = 0;
  std::int64_t pad_after = 0;
  std::int64_t dilation = 1;

  // Input elements that one output looks at, from the first tap to the last.
  constexpr std::int64_t extent() const { return dilation * (kernel - 1) + 1; }
  constexpr std::int64_t padded_input() const { return input + pad_before + pad_after; }

  // The output-size formula. Valid when extent() <= padded_input().
  constexpr std::int64_t output() const { return (padded_input() - extent()) / stride + 1; }

  constexpr bool operator==(const Axis&) const = default;
};

struct Problem {
  Pass pass = Pass::forward;
  DType dtype = DType::float32;
  Layout layout = Layout::nchw;
  bool bias = false;  // there is one to add, or its gradient is wanted
  std::int64_t batch = 1;
  std::int64_t channels = 1;    // of the input
  std::int64_t multiplier = 1;  // filters per input channel
  Axis h;
  Axis w;

  constexpr std::int64_t filters() const { return channels * multiplier; }
  constexpr std::int64_t taps() const { return h.kernel * w.kernel; }
  // What a weight gradient has of a filter: with `bias`, that of the bias as well.
  constexpr std::int64_t sums() const { return taps() + (bias ? 1 : 0); }
  constexpr std::int64_t input_numel() const { return batch * channels * h.input * w.input; }
  constexpr std::int64_t output_numel() const {
    return batch * filters() * h.output() * w.output();
  }

  constexpr bool operator==(const Problem&) const = default;
};

}  // namespace dwconv
