// Rows of results of the diagonal family on their way out: all warps of a block write theirs to
// shared memory, and the copy engine takes them to global memory together. Alone, a warp has 16
// bytes of a pixel, half of what memory moves at least: N128 C96 56x56 k7 float16 took 137 us with
// such stores, and 79 without any.
#pragma once

#include "../families/diagonal.h"
#include "tensor_map.cuh"

namespace dwconv::diagonal {

#if __CUDA_ARCH__ >= 900
// Warps write row after row at their own pace, but for a few rows. Each row is sent by another
// warp, when that comes to the next; and when it comes to the one after, the row's place is free.
class Results {
 public:
  // A barrier of the block must follow.
  __device__ Results(std::uint32_t barriers, std::uint32_t places, int place_bytes)
      : written_(barriers),
        places_(places),
        place_bytes_(place_bytes),
        warps_(static_cast<int>(blockDim.x) / 32),
        // Not when it brings a row.
        turn_((static_cast<int>(threadIdx.x) / 32 + warps_ / 2) % warps_) {
    if (threadIdx.x == 0) {
      for (int i = 0; i < kPlaces; ++i) {
        init_barrier(written(i), static_cast<int>(blockDim.x) / 32);
        init_barrier(free(i), 1);
      }
    }
  }

  // Whether there is room for the next row.
  __device__ bool test() const { return test_barrier(free(place(row_)), parity(row_) ^ 1); }
  // Where it goes, when there is.
  __device__ std::uint32_t wait(bool tested) const {
    if (!tested) wait_barrier(free(place(row_)), parity(row_) ^ 1);
    return places_ + place(row_) * place_bytes_;
  }
  // The warp has written its part. `send(place)` starts the copy of the row before.
  template <typename Send>
  __device__ void leave(const Send& send) {
    __syncwarp();
    const bool first = threadIdx.x % 32 == 0;
    if (first) arrive_at(written(place(row_)));
    if (turn_ == warps_ - 1 && first && row_ > 1) {
      wait_until_sent<0>();
      arrive_at(free(place(row_ - 2)));
    }
    if (turn_ == 0) {
      turn_ = warps_;
      if (first && row_ > 0) send_row(row_ - 1, send);
    }
    --turn_;
    ++row_;
  }
  // After the last row.
  template <typename Send>
  __device__ void finish(const Send& send) {
    if (threadIdx.x == 0 && row_ > 0) send_row(row_ - 1, send);
    wait_until_sent<0>();
  }

 private:
  template <typename Send>
  __device__ void send_row(int row, const Send& send) const {
    wait_barrier(written(place(row)), parity(row));
    publish();
    send(places_ + place(row) * place_bytes_);
    commit_sent();
  }
  __device__ static int place(int row) { return static_cast<unsigned>(row) % kPlaces; }
  __device__ static int parity(int row) { return static_cast<unsigned>(row) / kPlaces % 2; }
  __device__ std::uint32_t written(int place) const { return written_ + 8 * place; }
  __device__ std::uint32_t free(int place) const { return written_ + 8 * (kPlaces + place); }

  std::uint32_t written_, places_;
  int place_bytes_, warps_;
  int turn_;  // rows until it is this warp's to send one
  int row_ = 0;
};
#endif

}  // namespace dwconv::diagonal
