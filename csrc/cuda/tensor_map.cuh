// Boxes of channels_last tensors that the copy engine of sm_90 brings to shared memory, zeros where
// they reach beyond the tensor. CUDA driver API, tensor map objects.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "bulk.cuh"
#include "check.cuh"
#include "scalar.cuh"

namespace dwconv {

// So many channels, columns and images of one row; `step` from one column to the next.
struct Box {
  int channels, columns, images, step;
  bool swizzled = false;  // see swizzled(), below; the channels are 32, 64 or 128 bytes then
};

using EncodeTiled = CUresult(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*,
                             const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                             const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                             CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// Looked up, so that nothing is linked to the driver's library.
inline EncodeTiled* encode_tiled() {
  static EncodeTiled* const found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                           cudaEnableDefault, &result),
          "tensor maps");
    return reinterpret_cast<EncodeTiled*>(function);
  }();
  return found;
}

// Of a tensor of `batch` images of `rows` x `columns` with `channels` each. Bytes of a pixel are a
// multiple of 16.
template <DType dtype>
CUtensorMap tensor_map(const void* data, std::int64_t batch, std::int64_t rows,
                       std::int64_t columns, std::int64_t channels, const Box& box) {
  constexpr CUtensorMapDataType type = dtype == DType::float32   ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
                                       : dtype == DType::float16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                                 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const auto pixel = static_cast<cuuint64_t>(channels * size_of(dtype));
  const auto row = pixel * static_cast<cuuint64_t>(columns);
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(channels), static_cast<cuuint64_t>(columns),
                              static_cast<cuuint64_t>(rows), static_cast<cuuint64_t>(batch)};
  const cuuint64_t strides[] = {pixel, row, row * static_cast<cuuint64_t>(rows)};
  const cuuint32_t extents[] = {static_cast<cuuint32_t>(box.channels),
                                static_cast<cuuint32_t>(box.columns * box.step), 1,
                                static_cast<cuuint32_t>(box.images)};
  const cuuint32_t steps[] = {1, static_cast<cuuint32_t>(box.step), 1, 1};
  const std::int64_t bytes = box.channels * size_of(dtype);
  const CUtensorMapSwizzle swizzle = !box.swizzled ? CU_TENSOR_MAP_SWIZZLE_NONE
                                     : bytes == 32 ? CU_TENSOR_MAP_SWIZZLE_32B
                                     : bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                   : CU_TENSOR_MAP_SWIZZLE_128B;
  CUtensorMap map{};
  const CUresult result =
      encode_tiled()(&map, type, 4, const_cast<void*>(data), sizes, strides, extents, steps,
                     CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                     CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    fail("no tensor map", static_cast<int>(result));
  }
  return map;
}

// Where byte `at` of a swizzled box lies, which begins at a multiple of 1,024: pixels that are
// equal in all but their number modulo 8 share no bank, 16 bytes of each.
__device__ inline std::uint32_t swizzled(std::uint32_t at, int pixel_bytes) {
  return at ^ (at >> 3 & (pixel_bytes - 16));
}

#if __CUDA_ARCH__ >= 900
// One thread starts the copy; `barrier` counts its bytes.
__device__ inline void load_box(std::uint32_t shared, const CUtensorMap& map, int channel,
                                int column, int row, int image, std::uint32_t barrier,
                                Use use = Use::any) {
  if (use == Use::last) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
        ".L2::cache_hint [%0], [%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(shared),
        "l"(&map), "r"(channel), "r"(column), "r"(row), "r"(image), "r"(barrier),
        "l"(last_use_policy())
        : "memory");
    return;
  }
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(shared),
      "l"(&map), "r"(channel), "r"(column), "r"(row), "r"(image), "r"(barrier)
      : "memory");
}
// One thread starts the copy of a box to global memory, but for what is beyond the tensor. To be
// committed.
__device__ inline void store_box(const CUtensorMap& map, int channel, int column, int row,
                                 int image, std::uint32_t shared) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%1, %2, %3, %4}], [%5];" ::"l"(
          &map),
      "r"(channel), "r"(column), "r"(row), "r"(image), "r"(shared)
      : "memory");
}
#endif

}  // namespace dwconv
