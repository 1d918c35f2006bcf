// Which taps of the filter meet which elements, along one axis. An output o reads the input element
//   o * stride - pad_before + tap * dilation
// for every tap that lands inside the input. The ranges are worked out once, so that no kernel
// tests bounds per tap.
#pragma once

#include <cstdint>
#include <numeric>
#include <utility>

#include "../problem.h"
#include "divide.cuh"

namespace dwconv {

// The taps that contribute to one result, and the source element that each of them multiplies:
// `count` taps from `tap` in steps of `tap_step`, the source moving by `source_step`.
struct Walk {
  int tap;
  int count;
  int tap_step;
  std::int64_t source;
  std::int64_t source_step;
};

// For an output: the taps that land inside the input.
class ForwardTaps {
 public:
  explicit ForwardTaps(const Axis& axis)
      : input_(axis.input),
        stride_(axis.stride),
        pad_(axis.pad_before),
        kernel_(static_cast<int>(axis.kernel)),
        dilation_(axis.dilation) {}

  __device__ Walk at(std::int64_t output) const {
    const std::int64_t start = output * stride_ - pad_;  // of tap 0
    const std::int64_t first = start < 0 ? dilation_.ceil_quotient(-start) : 0;
    const std::int64_t room = input_ - 1 - start;
    const std::int64_t fits = room < 0 ? 0 : dilation_.quotient(room) + 1;
    const std::int64_t last = fits < kernel_ ? fits : kernel_;
    return {static_cast<int>(first), static_cast<int>(last > first ? last - first : 0), 1,
            start + first * dilation_.value(), dilation_.value()};
  }

 private:
  std::int64_t input_, stride_, pad_;
  int kernel_;
  Divisor dilation_;
};

// For an input element i: the taps through which some output read it, that is
//   output * stride = i + pad_before - tap * dilation.
// Such taps are those of one residue class modulo stride / gcd(stride, dilation); its first member
// comes from the inverse of dilation / gcd in that modulus, so that no tap is tried in vain.
class BackwardInputTaps {
 public:
  explicit BackwardInputTaps(const Axis& axis)
      : pad_(axis.pad_before),
        output_(axis.output()),
        kernel_(static_cast<int>(axis.kernel)),
        stride_(axis.stride),
        dilation_(axis.dilation),
        common_(std::gcd(axis.stride, axis.dilation)),
        step_(axis.stride / std::gcd(axis.stride, axis.dilation)) {
    const std::int64_t common = std::gcd(axis.stride, axis.dilation);
    source_step_ = axis.dilation / common;
    inverse_ = inverse(source_step_, axis.stride / common);
  }

  __device__ Walk at(std::int64_t input) const {
    const std::int64_t reach = input + pad_;  // of tap 0, in units of outputs * stride
    const std::int64_t shared = common_.quotient(reach);
    if (shared * common_.value() != reach) return {0, 0, 1, 0, 0};
    const std::int64_t modulus = step_.value();
    const std::int64_t residue = remainder(shared, step_);
    std::int64_t first = remainder(residue * inverse_, step_);
    // Skip the taps that lie beyond the last output.
    const std::int64_t beyond = reach - (output_ - 1) * stride_.value();
    const std::int64_t skipped = beyond - first * dilation_.value();
    if (skipped > 0) {
      first += step_.ceil_quotient(dilation_.ceil_quotient(skipped)) * modulus;
    }
    const std::int64_t reached = dilation_.quotient(reach);
    const std::int64_t last = reached < kernel_ - 1 ? reached : kernel_ - 1;
    if (first > last) return {0, 0, 1, 0, 0};
    return {static_cast<int>(first), static_cast<int>(step_.quotient(last - first)) + 1,
            static_cast<int>(modulus), stride_.quotient(reach - first * dilation_.value()),
            -source_step_};
  }

 private:
  // x with value * x = 1 modulo modulus, for coprime numbers: Euclid's algorithm, extended.
  static std::int64_t inverse(std::int64_t value, std::int64_t modulus) {
    std::int64_t x = 0, next_x = 1;
    std::int64_t rest = modulus, next_rest = value % modulus;
    while (next_rest != 0) {
      const std::int64_t quotient = rest / next_rest;
      x = std::exchange(next_x, x - quotient * next_x);
      rest = std::exchange(next_rest, rest - quotient * next_rest);
    }
    return x < 0 ? x + modulus : x;
  }

  __device__ static std::int64_t remainder(std::int64_t value, const Divisor& by) {
    return value - by.quotient(value) * by.value();
  }

  std::int64_t pad_, output_, inverse_, source_step_;
  int kernel_;
  Divisor stride_, dilation_, common_, step_;
};

// For a tap: the outputs [first, last) through which it reads inside the input.
struct Span {
  std::int64_t first;
  std::int64_t last;
};

class TapOutputs {
 public:
  explicit TapOutputs(const Axis& axis)
      : input_(axis.input),
        output_(axis.output()),
        pad_(axis.pad_before),
        dilation_(axis.dilation),
        stride_(axis.stride) {}

  __device__ Span of(int tap) const {
    const std::int64_t shift = tap * dilation_ - pad_;  // input element = output * stride + shift
    const std::int64_t first = shift < 0 ? stride_.ceil_quotient(-shift) : 0;
    const std::int64_t room = input_ - 1 - shift;
    const std::int64_t fits = room < 0 ? 0 : stride_.quotient(room) + 1;
    return {first, fits < output_ ? fits : output_};
  }

  __device__ std::int64_t input_of(std::int64_t output, int tap) const {
    return output * stride_.value() + tap * dilation_ - pad_;
  }
  __device__ std::int64_t stride() const { return stride_.value(); }
  __device__ std::int64_t outputs() const { return output_; }

 private:
  std::int64_t input_, output_, pad_, dilation_;
  Divisor stride_;
};

}  // namespace dwconv
