// The Toeplitz family, channels_last: pixels on their way to planes in shared memory, and back.
// Neighbouring lanes are neighbouring channels in global memory, and neighbouring banks of shared
// memory.
#pragma once

#include "memory.cuh"
#include "toeplitz_unit.cuh"

namespace dwconv::toeplitz {

// A thread takes up to so many pairs of a row's pixels at a time, all of which are on their way at
// once.
inline constexpr int kSpanPairs = 8;

// How a unit's pixels lie in global memory, and its planes in shared memory.
struct Pixels {
  int columns, channels;  // of a row
  int lead;               // columns of a plane's row before the first pixel
  std::int64_t image;     // elements
  int row_bytes, plane_bytes, image_bytes;
  int span;  // pairs of a plane's row that a thread takes
  SmallDivisor vectors, spans, rows;
  int items;  // of a unit

  Pixels(const Geometry& g, const Problem& problem, const Strides& planes,
         std::int64_t rows_of_image, std::int64_t columns, int rows_of_unit, int lead, int run)
      : columns(static_cast<int>(columns)),
        channels(static_cast<int>(problem.channels)),
        lead(lead),
        image(rows_of_image * columns * channels),
        row_bytes(2 * planes.row),
        plane_bytes(2 * static_cast<int>(planes.plane)),
        image_bytes(run),
        rows(rows_of_unit) {
    const int pairs = planes.row / 2;
    span = ceil_div(pairs, ceil_div(pairs, kSpanPairs));
    const int spans_of_row = ceil_div(pairs, span);
    const int vectors_of_unit = ceil_div(g.channels, channels % 2 == 0 ? 2 : 1);
    spans = SmallDivisor(spans_of_row);
    vectors = SmallDivisor(vectors_of_unit);
    items = vectors_of_unit * spans_of_row * rows_of_unit * g.images;
  }

  // The first element of a unit whose first row is this one of an image.
  __device__ std::int64_t first(const Grid& grid, const Unit& unit, int row) const {
    return static_cast<std::int64_t>(unit.image) * grid.g.images * image +
           static_cast<std::int64_t>(row) * columns * channels + grid.first_channel(unit);
  }
};

// What a pass gathers: the input, or of an input gradient the output's.
inline Pixels source_pixels(const Grid& grid, const Problem& problem) {
  const Geometry& g = grid.g;
  return {g, problem, grid.source, g.h.source, g.end - g.lead, g.source_rows, g.lead, g.source_run};
}
// And what it sends.
inline Pixels result_pixels(const Grid& grid, const Problem& problem) {
  const Geometry& g = grid.g;
  const bool backward = problem.pass == Pass::backward_input;
  const auto rows = backward ? problem.h.input : problem.h.output();
  const auto columns = backward ? problem.w.input : problem.w.output();
  return {g, problem, grid.result, rows, columns, g.result_rows, 0, g.result_run};
}

// Calls use(first, last, pairs, element, at) for each of a thread's spans: the pixels that there
// are of its pairs, the first one's element of the tensor, and its byte of the planes.
template <int per, typename Use>
__device__ inline void for_spans(const Pixels& p, std::int64_t first, int channels, int rows,
                                 int images, const Use& use) {
  for (int i = threadIdx.x; i < p.items; i += blockDim.x) {
    int image = i;
    const int channel = p.vectors.remainder(image) * per;
    const int pair = p.spans.remainder(image) * p.span;
    const int row = p.rows.remainder(image);
    if (channel >= channels || row >= rows || image >= images) continue;
    const int column = 2 * pair - p.lead;
    const int pairs = min(p.span, p.row_bytes / 4 - pair);
    use(column < 0 ? 1 : 0, min(2 * pairs, p.columns - column), pairs,
        first + image * p.image + static_cast<std::int64_t>(row * p.columns + column) * p.channels +
            channel,
        image * p.image_bytes + channel * p.plane_bytes + row * p.row_bytes + 4 * pair);
  }
}

// Pixels of `tensor` go to their planes, from the element `first` on. Columns beside the image keep
// what they had: they never count.
template <int per, typename Type>
__device__ inline void gather(const Pixels& p, const Type* tensor, std::int64_t first, int channels,
                              int rows, int images, char* planes) {
  using Pixel = typename Word<2 * per>::Type;
  const auto step = static_cast<std::uint32_t>(2 * p.channels);
  Pixel pixels[2 * kSpanPairs] = {};
  for_spans<per>(p, first, channels, rows, images,
                 [&](int begin, int end, int pairs, std::int64_t element, int at) {
                   const char* from = reinterpret_cast<const char*>(tensor + element);
#pragma unroll
                   for (int i = 0; i < 2 * kSpanPairs; ++i) {
                     if (i < end && (i > 0 || begin == 0))
                       pixels[i] = *reinterpret_cast<const Pixel*>(from);
                     from += step;
                   }
#pragma unroll
                   for (int i = 0; i < kSpanPairs; ++i) {
                     if (i >= pairs) break;
                     const std::uint32_t one = pixels[2 * i], two = pixels[2 * i + 1];
                     char* to = planes + at + 4 * i;
                     *reinterpret_cast<std::uint32_t*>(to) = __byte_perm(one, two, 0x5410);
                     if constexpr (per == 2)
                       *reinterpret_cast<std::uint32_t*>(to + p.plane_bytes) =
                           __byte_perm(one, two, 0x7632);
                   }
                 });
}

// And results from theirs to the tensor.
template <int per, typename Type>
__device__ inline void scatter(const Pixels& p, Type* tensor, std::int64_t first, int channels,
                               int rows, int images, const char* planes) {
  using Pixel = typename Word<2 * per>::Type;
  const auto step = static_cast<std::uint32_t>(2 * p.channels);
  for_spans<per>(
      p, first, channels, rows, images, [&](int, int end, int pairs, std::int64_t element, int at) {
        char* to = reinterpret_cast<char*>(tensor + element);
#pragma unroll 4
        for (int i = 0; i < pairs; ++i) {
          const char* from = planes + at + 4 * i;
          const auto one = *reinterpret_cast<const std::uint32_t*>(from);
          std::uint32_t pixels[2] = {one, one >> 16};
          if constexpr (per == 2) {
            const auto two = *reinterpret_cast<const std::uint32_t*>(from + p.plane_bytes);
            pixels[0] = __byte_perm(one, two, 0x5410);
            pixels[1] = __byte_perm(one, two, 0x7632);
          }
          *reinterpret_cast<Pixel*>(to) = static_cast<Pixel>(pixels[0]);
          to += step;
          if (2 * i + 1 < end) *reinterpret_cast<Pixel*>(to) = static_cast<Pixel>(pixels[1]);
          to += step;
        }
      });
}

// As many channels as a thread takes.
template <typename Take>
__device__ inline void by_channels(const Pixels& p, const Take& take) {
  if (p.channels % 2 == 0) {
    take.template operator()<2>();
  } else {
    take.template operator()<1>();
  }
}

}  // namespace dwconv::toeplitz
