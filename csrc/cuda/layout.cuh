// Index structs of the two memory layouts: one kernel body serves both. All strides are in
// elements.
#pragma once

#include "../problem.h"
#include "divide.cuh"

namespace dwconv {

struct Position {
  std::int64_t n, c, h, w;
};

// A dense tensor of N x c x h x w elements.
template <Layout layout>
class Index {
 public:
  Index(std::int64_t c, std::int64_t h, std::int64_t w) : c_(c), h_(h), w_(w) {}

  // Where the element of a linear index lies; neighbours in memory are neighbours in the index.
  __device__ Position split(std::int64_t linear) const {
    Position at;
    if constexpr (layout == Layout::nchw) {
      at.w = w_.remainder(linear);
      at.h = h_.remainder(linear);
      at.c = c_.remainder(linear);
    } else {
      at.c = c_.remainder(linear);
      at.w = w_.remainder(linear);
      at.h = h_.remainder(linear);
    }
    at.n = linear;
    return at;
  }

  __device__ std::int64_t offset(const Position& at) const {
    if constexpr (layout == Layout::nchw) {
      return ((at.n * c_.value() + at.c) * h_.value() + at.h) * w_.value() + at.w;
    } else {
      return ((at.n * h_.value() + at.h) * w_.value() + at.w) * c_.value() + at.c;
    }
  }

  __device__ std::int64_t channel_stride() const {
    return layout == Layout::nchw ? h_.value() * w_.value() : 1;
  }
  __device__ std::int64_t row_stride() const {
    return layout == Layout::nchw ? w_.value() : w_.value() * c_.value();
  }
  __device__ std::int64_t column_stride() const { return layout == Layout::nchw ? 1 : c_.value(); }

 private:
  Divisor c_, h_, w_;
};

}  // namespace dwconv
