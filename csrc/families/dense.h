// The dense family: large filters of small 16-bit images on the tensor cores. All results of an
// image are its elements times one matrix, that of a channel, which is made of the filter's taps;
// rows of a product are images. Shared by its planner and its kernels.
//
// A warp has some columns of the matrix in registers, for all images of its block's run that are of
// one channel.
#pragma once

#include "image_blocks.h"

namespace dwconv::dense {

inline constexpr int kImages = kBlockImages;
inline constexpr int kStep = 16;  // elements of an image, of a product
inline constexpr int kBlock = 8;  // results, of a product

// What a kernel is compiled for. small: images and results of up to 64 elements, whose matrix one
// warp has. even: planes begin at a multiple of 4 bytes, so that two elements are read at a time.
struct Shape {
  bool small = false;
  bool even = false;

  constexpr int steps() const { return small ? 4 : 13; }
  // Of a warp: as many as registers hold the matrix of.
  constexpr int blocks() const { return small ? 8 : 7; }
  constexpr int warps() const { return small ? 16 : 8; }
};

// Everything that follows from a problem and its tiling. A unit is some channels of 16 images.
struct Geometry {
  Window h, w;
  Shape shape;
  int source_plane = 1, result_plane = 1;  // elements
  int channels = 1;                        // of a unit
  int groups = 1;                          // of channels
  int images = kImages;
  int image_blocks = 1;
  int bands = 1;
  int steps = 1;  // of an image
  int jobs = 1;   // warps that share a channel's results
  // Taps by how far element and result are apart, zeros where the filter has none: so many rows and
  // columns.
  int apart_h = 1, apart_w = 1;
  // Shared memory, in bytes: stages of the images' planes, a run for the channels of each image,
  // and of filters; two places for results, as many runs, on their way out; the channels' taps;
  // barriers last.
  int source_step = 0, result_step = 0;
  int filters_at = 0;  // in a stage
  int stages_at = 0;
  int stage_bytes = 0;
  int results_at = 0;
  int result_bytes = 0;  // of a place
  int taps_at = 0;
  int barriers_at = 0;
  int shared_bytes = 0;
  std::int64_t units = 0;

  constexpr int warps() const { return channels * jobs; }
  constexpr int taps() const { return apart_h * apart_w; }
};

Geometry geometry(const Problem& problem, const Tiling& tiling);

}  // namespace dwconv::dense
