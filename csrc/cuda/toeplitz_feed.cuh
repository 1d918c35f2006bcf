// How tensors get into shared memory in the kernels of the Toeplitz family.
#pragma once

#include "toeplitz_unit.cuh"

namespace dwconv::toeplitz {

// Asynchronous copies to shared memory: a piece, if it is wanted, and up to 16 bytes of a run with
// zeros after them. They need sm_80.
template <int bytes>
__device__ inline void copy_piece(std::uint32_t shared, const void* global, bool wanted) {
#if __CUDA_ARCH__ >= 800
  // A branch would have the compiler work the addresses out again for each piece.
  if constexpr (bytes == 16) {
    asm volatile(
        "{ .reg .pred p; setp.ne.u32 p, %2, 0; @p cp.async.cg.shared.global [%0], [%1], 16; }" ::
            "r"(shared),
        "l"(global), "r"(static_cast<int>(wanted))
        : "memory");
  } else {
    asm volatile(
        "{ .reg .pred p; setp.ne.u32 p, %2, 0; @p cp.async.ca.shared.global [%0], [%1], %3; }" ::
            "r"(shared),
        "l"(global), "r"(static_cast<int>(wanted)), "n"(bytes)
        : "memory");
  }
#endif
}
__device__ inline void copy_part(std::uint32_t shared, const void* global, int bytes) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
               "r"(bytes)
               : "memory");
#endif
}

// Brings one tensor's share of the units into shared memory, zeros around it: see Feed.
template <typename Type>
class Feeder {
 public:
  __device__ Feeder(const Grid& grid, const Feed& feed, const Type* tensor, char* shared)
      : grid_(grid),
        feed_(feed),
        stage_(feed.stage),
        tensor_(tensor),
        tiles_(reinterpret_cast<Type*>(shared + feed.at)),
        table_(shared + feed.table_at) {}

  // Fills the table. To be called by all threads, and followed by a barrier.
  __device__ void prepare() const {
    const int begin = stage_.left - stage_.left % kRunAlign;
#pragma unroll 1
    for (int i = threadIdx.x; i < grid_.g.planes * feed_.pieces; i += kThreads) {
      int row = i / feed_.row_pieces;
      const int piece = i - row * feed_.row_pieces;
      const int plane = row / stage_.rows;
      row -= plane * stage_.rows;
      const int place = plane * stage_.plane + (stage_.top + row) * stage_.pitch;
      if (feed_.raw == 0) {
        // Four of a lane lie side by side.
        const int entry = (i / kBlockPieces * 32 + i % 32) * kLanePieces + i / 32 % kLanePieces;
        reinterpret_cast<std::uint16_t*>(table_)[entry] =
            static_cast<std::uint16_t>(place + stage_.left + piece * stage_.chunk);
      } else {
        const int column = begin + piece * kRunPiece;
        const int from = (plane * stage_.height + row) * stage_.width + column - stage_.left;
        reinterpret_cast<std::uint32_t*>(table_)[i] = static_cast<std::uint32_t>(
            (from + kRunAlign) << 16 | (place + column) | (piece == 0 ? kFirst : 0) |
            (piece == feed_.row_pieces - 1 ? kLast : 0));
      }
    }
  }

  // Starts a unit's copies.
  __device__ void load(const Unit& unit, int slot) const {
    const Part part(*this, unit);
    if (feed_.raw > 0) {
      copy_runs(part, slot);
    } else if (stage_.chunk == 2) {
      copy_pieces<2>(part, slot);
    } else if (stage_.chunk == 4) {
      copy_pieces<4>(part, slot);
    } else {
      copy_pieces<8>(part, slot);
    }
  }

  // Lays out a unit that came in whole; to be called by all threads after its copies have ended.
  // The pieces begin anywhere in a word of the run: the words are read, and shifted.
  __device__ void place(const Unit& unit, int slot) const {
    const Part part(*this, unit);
    const Share share(grid_.g.images);
    const auto* table = reinterpret_cast<const std::uint32_t*>(table_);
    const auto* words = reinterpret_cast<const std::uint32_t*>(tiles_);
    const int first_before = misalignment(part.run()) + share.first * part.step_before();
    const int before_run = stage_.left % kRunAlign;
    const int in_last = before_run + stage_.width - (feed_.row_pieces - 1) * kRunPiece;
    for (int i = share.rank; i < part.pieces; i += share.size) {
      const std::uint32_t entry = table[i];
      const int begin = entry & kFirst ? before_run : 0;
      const int end = !part.is_inside(i) ? 0 : entry & kLast ? in_last : kRunPiece;
      std::uint32_t mask[4];
#pragma unroll
      for (int j = 0; j < 4; ++j)
        mask[j] = (2 * j >= begin && 2 * j < end ? 0xffffu : 0u) |
                  (2 * j + 1 >= begin && 2 * j + 1 < end ? 0xffff0000u : 0u);
      int from =
          raw_offset(slot, share.first) + static_cast<int>(entry >> 16) - kRunAlign - part.above;
      int before = first_before;
      Type* to = tiles_ + (entry & 0xfffc) + share.first * feed_.image;
      for (int image = share.first; image < part.images; image += share.step) {
        const int at = from + before % kVector;
        const std::uint32_t* word = words + (at >> 1);
        const int shift = (at & 1) * 16;
        const std::uint32_t w[5] = {word[0], word[1], word[2], word[3], word[4]};
        auto* pair = reinterpret_cast<uint2*>(to);
        pair[0] = {__funnelshift_r(w[0], w[1], shift) & mask[0],
                   __funnelshift_r(w[1], w[2], shift) & mask[1]};
        pair[1] = {__funnelshift_r(w[2], w[3], shift) & mask[2],
                   __funnelshift_r(w[3], w[4], shift) & mask[3]};
        from += share.step * feed_.raw;
        before += share.step * part.step_before();
        to += share.step * feed_.image;
      }
    }
  }

  __device__ Type* tile(int slot) const {
    return tiles_ + (feed_.raw > 0 ? 0 : slot * stage_.elements);
  }

 private:
  // Marks of an entry of the table, in bits that a place leaves free: the ends of a row.
  static constexpr std::uint32_t kFirst = 1, kLast = 2;
  static_assert(kRunAlign == 4 && kRunPiece == 8);

  // What a unit takes of the tensor.
  struct Part {
    int images;
    int pieces;           // of an image
    int outside, inside;  // pieces of rows above the image, and of its rows
    int above, elements;  // the same in elements
    const Type* from;     // the first piece of the first image
    std::int64_t step;    // from one image to the next

    __device__ Part(const Feeder& feeder, const Unit& unit) : images(feeder.grid_.images(unit)) {
      const Feed& feed = feeder.feed_;
      const Stage& s = feed.stage;
      const int planes = feeder.grid_.planes(unit);
      const int first = s.first_row + unit.band * feeder.grid_.g.rows;
      const int rows = max(min(first + s.rows, s.height) - max(first, 0), 0);
      pieces = planes * feed.pieces;
      outside = max(-first, 0) * feed.row_pieces;
      inside = pieces - (s.rows - rows) * feed.row_pieces;
      above = max(-first, 0) * s.width;
      elements = ((planes - 1) * s.height + rows) * s.width;
      from = feeder.tensor_ + feeder.grid_.first_plane(unit) * feed.plane_elements +
             static_cast<std::int64_t>(first) * s.width;
      step = feed.image_elements;
    }
    __device__ bool is_inside(int piece) const {
      return static_cast<unsigned>(piece - outside) < static_cast<unsigned>(inside);
    }
    // Where the first image's run begins, and by how much the next one's place in 16 bytes differs.
    __device__ const Type* run() const { return from + above; }
    __device__ int step_before() const { return static_cast<int>(step) & (kVector - 1); }
  };

  __device__ int raw_offset(int slot, int image) const {
    return stage_.elements + (slot * grid_.g.images + image) * feed_.raw;
  }

  // Whole runs, of the rows of the image only.
  __device__ void copy_runs(const Part& part, int slot) const {
    if (part.elements == 0) return;
    const Share share(grid_.g.images);
    const Type* from = part.run() + share.first * part.step;
    std::uint32_t to = shared_address(tiles_ + raw_offset(slot, share.first));
    for (int image = share.first; image < part.images; image += share.step) {
      const int before = misalignment(from);
      const int end = before + part.elements;
      for (int i = share.rank * kVector; i < end; i += share.size * kVector)
        copy_part(to + 2 * i, from - before + i, 2 * min(kVector, end - i));
      from += share.step * part.step;
      to += 2 * share.step * feed_.raw;
    }
  }

  // The places of a lane's pieces i, i + 32, ..., of which the last may be beyond the image.
  struct Places {
    int at[kLanePieces];

    __device__ Places(const char* table, int entry) {
      const uint2 two = reinterpret_cast<const uint2*>(table)[entry];
      at[0] = two.x & 0xffff;
      at[1] = two.x >> 16;
      at[2] = two.y & 0xffff;
      at[3] = two.y >> 16;
    }
  };

  template <int chunk>
  __device__ void copy_pieces(const Part& part, int slot) const {
    const Share share(grid_.g.images);
    Type* tiles = tile(slot) + share.first * feed_.image;
    int piece = share.rank / 32 * kBlockPieces + share.rank % 32;
    for (int entry = share.rank; piece < part.pieces; entry += share.size) {
      const Places places(table_, entry);
      bool wanted[kLanePieces];
#pragma unroll
      for (int i = 0; i < kLanePieces; ++i)
        wanted[i] = part.is_inside(piece + 32 * i);
      const Type* from = part.from + (share.first * part.step + piece * chunk);
      std::uint32_t to = shared_address(tiles);
      for (int image = share.first; image < part.images; image += share.step) {
#pragma unroll
        for (int i = 0; i < kLanePieces; ++i)
          copy_piece<chunk * sizeof(Type)>(to + 2 * places.at[i], from + 32 * i * chunk, wanted[i]);
        from += share.step * part.step;
        to += 2 * share.step * feed_.image;
      }
      piece += share.size * kLanePieces;
    }
    if (part.inside < part.pieces) clear_outside<chunk>(part, tiles, share);
  }

  // Rows of a band that lie outside the image.
  template <int chunk>
  __device__ void clear_outside(const Part& part, Type* tiles, const Share& share) const {
    using Piece = typename Word<chunk * sizeof(Type)>::Type;
    int piece = share.rank / 32 * kBlockPieces + share.rank % 32;
    for (int entry = share.rank; piece < part.pieces; entry += share.size) {
      const Places places(table_, entry);
#pragma unroll
      for (int i = 0; i < kLanePieces; ++i) {
        if (piece + 32 * i >= part.pieces || part.is_inside(piece + 32 * i)) continue;
        Type* to = tiles + places.at[i];
        for (int image = share.first; image < part.images; image += share.step) {
          *reinterpret_cast<Piece*>(to) = {};
          to += share.step * feed_.image;
        }
      }
      piece += share.size * kLanePieces;
    }
  }

  const Grid& grid_;
  const Feed& feed_;
  const Stage& stage_;
  const Type* tensor_;
  Type* tiles_;
  char* table_;
};

}  // namespace dwconv::toeplitz
