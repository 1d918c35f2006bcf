// Sums of a weight gradient over the threads of a block that keeps one group of channels. Threads
// lie side by side on the channels, in slots, one beside the other; and the slots in roles.
#pragma once

#include <cuda_runtime.h>

namespace dwconv {

struct Slots {
  int width;  // channels
  int slots;  // of a role
  int roles;
};

// `sums[i]` of the block's threads, added over the slots of each role in their order, some at a
// time by way of `batch`. `holds`: this thread has a slot. `put(channel, role, i, sum)` takes them.
template <int batch_size, int count, int channels, typename Put>
__device__ inline void add_slots(const Slots& s, float* batch, const float (&sums)[count][channels],
                                 bool holds, const Put& put) {
  const int row = s.roles * s.slots * s.width;
  const int place = static_cast<int>(threadIdx.x) * channels;
#pragma unroll
  for (int first = 0; first < count; first += batch_size) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < batch_size && first + i < count; ++i)
#pragma unroll
      for (int v = 0; v < channels; ++v)
        if (holds) batch[i * row + place + v] = sums[first + i][v];
    __syncthreads();
    const int of = min(batch_size, count - first) * s.roles;
    for (int i = threadIdx.x; i < of * s.width; i += blockDim.x) {
      const int channel = i % s.width;
      const int role = i / s.width % s.roles;
      const int index = i / s.width / s.roles;
      const float* at = batch + index * row + role * s.slots * s.width + channel;
      float sum = 0;
      for (int slot = 0; slot < s.slots; ++slot)
        sum += at[slot * s.width];
      put(channel, role, first + index, sum);
    }
  }
}

}  // namespace dwconv
