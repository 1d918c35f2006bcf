// The plan: which kernel computes a problem on a device, and with what launch. Plain and printable.
#pragma once

#include <cstdint>

#include "problem.h"

namespace dwconv {

// One row of kernels.inc: a compiled kernel and the class of problems it was compiled for.
enum class Family : std::uint8_t {
  generic,
  pointwise,
  tile,
  plane,
  toeplitz,
  strip,
  ring,
  diagonal,
  banded,
  hankel,
  direct,
  outer,
  dense,
  columns,
  batched
};

struct Kernel {
  int row;  // index into the table
  Family family;
  Pass pass;
  DType dtype;
  Layout layout;
  const char* name;  // family_pass_dtype_layout
};

// What the planner knows of a device.
struct Arch {
  int compute_capability = 80;  // major * 10 + minor
  int multiprocessors = 108;
  // What the kernels were compiled for: less than the above where the driver translates them.
  int compiled_for = compute_capability;

  constexpr bool operator==(const Arch&) const = default;
};

// How a family that works on tiles in shared memory cuts the problem into units.
struct Tiling {
  int planes = 1;       // channels of a unit
  int images = 1;       // images of a unit
  int rows = 1;         // output rows of a unit
  int stages = 2;       // units in shared memory at a time
  int threads = 128;    // of a block, that compute
  int tile_rows = 7;    // results of a thread, along h
  int columns = 1;      // results of a thread, along w
  int width = 0;        // output columns of a unit, where it may have fewer than all
  int places = 2;       // of results on their way out of shared memory
  bool served = false;  // a warp more loads units and sends results

  constexpr int block_threads() const { return threads + (served ? 32 : 0); }
  constexpr bool operator==(const Tiling&) const = default;
};

struct Plan {
  const Kernel* kernel = nullptr;
  std::int64_t blocks = 0;
  int threads = 0;
  std::int64_t slices = 1;           // partial sums per weight (backward_weight)
  std::int64_t workspace_bytes = 0;  // for those partial sums, and for images that are transposed
  bool sums_overlap = false;         // their kernel may begin before the one before it has ended
  bool whole_groups = false;         // a block or team has all of its channels' sums: none to add
  bool in_turn = false;              // blocks take units in turn, not runs of them
  bool transposed = false;           // the kernel takes contiguous images, the problem has others
  int queues = 0;                    // from which blocks claim them; 0: all is dealt out before
  int team = 1;                      // blocks of a cluster, which share a group of channels
  bool last_use = false;             // what is read is the first that the L2 may give up
  Tiling tiling;
  double estimate_us = 0;  // what the family expects to take, in microseconds
};

}  // namespace dwconv
