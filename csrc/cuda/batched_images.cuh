// How images come into shared memory for the batched family: four neighbouring elements of a row,
// a quad, of all images beside each other.
#pragma once

#include "../families/batched.h"
#include "divide.cuh"
#include "memory.cuh"
#include "uniform.cuh"

namespace dwconv::batched {

// Some channels of some images of a tensor.
struct Images {
  int first_channel, channels;
  int first_image, images;
  int all_channels;

  // The planes of an image's channels follow each other. take(i) has an element's number among
  // them and returns what to do with that of each image: it is given the image and the element's
  // place in the tensor. A warp goes over the images, another over others.
  template <typename Type, typename Take>
  __device__ void for_elements(Type* tensor, int plane, const Take& take) const {
    const int warp = static_cast<int>(threadIdx.x) / kLanes, warps = blockDim.x / kLanes;
    const std::int64_t image_step = static_cast<std::int64_t>(all_channels) * plane;
    const std::int64_t step = warps * image_step;
    Type* const first = tensor + (first_image + warp) * image_step +
                        static_cast<std::int64_t>(first_channel) * plane;
    for (int i = threadIdx.x % kLanes; i < channels * plane; i += kLanes) {
      const auto taken = take(i);
      Type* at = first + i;
      int image = warp;
      // Four at a time, without a test for each.
      for (; image + 3 * warps < images; image += 4 * warps, at += 4 * step) {
#pragma unroll
        for (int k = 0; k < 4; ++k)
          taken(image + k * warps, at + k * step);
      }
#pragma unroll 1
      for (; image < images; image += warps, at += step)
        taken(image, at);
    }
  }
};

// Starts to load them. Rows have `columns` elements, or `quads`.
__device__ inline void load_images(const Images& images, const float* tensor, int plane,
                                   const SmallDivisor& columns, int quads, int quad_pitch,
                                   float* to) {
  images.for_elements(tensor, plane, [&](int element) {
    int line = element;  // leaves the number of its row among those of all channels
    const int column = columns.remainder(line);
    float* const place =
        to + kQuad * ((line * quads + column / kQuad) * quad_pitch) + column % kQuad;
    return [place](int image, const float* from) {
      copy_or_zero<4>(place + kQuad * image, from, true);
    };
  });
  commit_copies();
}

// Zeros for the images that are not there, of so many rows.
__device__ inline void zero_absent(const Images& images, int rows, int quads, int quad_pitch,
                                   float* to) {
  const int absent = quad_pitch - 1 - images.images;
  if (absent <= 0) return;
  const SmallDivisor count(absent);
  for (int i = threadIdx.x; i < absent * rows * quads; i += blockDim.x) {
    int quad = i;
    const int image = images.images + count.remainder(quad);
    reinterpret_cast<float4*>(to)[quad * quad_pitch + image] = float4{};
  }
}

// What the quads of rows have more than the rows.
__device__ inline void zero_rest(float* rows, int count, int columns, int quads, int quad_pitch) {
  const int rest = kQuad * quads - columns, images = quad_pitch - 1;
  for (int i = threadIdx.x; i < count * images; i += blockDim.x) {
    const int image = i % images, line = i / images;
    for (int column = columns; column < columns + rest; ++column)
      rows[kQuad * ((line * quads + column / kQuad) * quad_pitch + image) + column % kQuad] = 0;
  }
}

}  // namespace dwconv::batched
