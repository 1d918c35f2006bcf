// The element types: how each is stored, and the type its sums are kept in.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../problem.h"

namespace dwconv {

template <DType dtype>
struct Scalar;

template <>
struct Scalar<DType::float32> {
  static constexpr DType dtype = DType::float32;
  using Type = float;
  using Sum = float;
  __device__ static Sum widen(Type value) { return value; }
  __device__ static Type round(Sum value) { return value; }
};

template <>
struct Scalar<DType::float64> {
  static constexpr DType dtype = DType::float64;
  using Type = double;
  using Sum = double;
  __device__ static Sum widen(Type value) { return value; }
  __device__ static Type round(Sum value) { return value; }
};

template <>
struct Scalar<DType::float16> {
  static constexpr DType dtype = DType::float16;
  using Type = __half;
  using Sum = float;
  __device__ static Sum widen(Type value) { return __half2float(value); }
  __device__ static Type round(Sum value) { return __float2half_rn(value); }
};

template <>
struct Scalar<DType::bfloat16> {
  static constexpr DType dtype = DType::bfloat16;
  using Type = __nv_bfloat16;
  using Sum = float;
  __device__ static Sum widen(Type value) { return __bfloat162float(value); }
  __device__ static Type round(Sum value) { return __float2bfloat16_rn(value); }
};

}  // namespace dwconv
