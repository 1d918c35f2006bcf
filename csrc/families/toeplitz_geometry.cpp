#include "toeplitz.h"

namespace dwconv::toeplitz {
namespace {

// What a walk costs beside its rows, in rows: addresses, the filter, the last results. Not
// measured.
constexpr int kWalkRows = 4;

// What an access to shared memory for one matrix weighs against all memory of a tile, in the choice
// of distances. Not measured: it takes wider rows at 28 x 28, and not at 14 x 14.
constexpr double kWavefrontCost = 0.15;

// A band's rows are cut into walks so that the warps finish soonest.
void choose_walks(Geometry& g) {
  int best = 0;
  for (int walks = 1; walks <= g.rows; ++walks) {
    const int rows = std::max(ceil_div(g.rows, walks), g.reach_h);
    const int needed = ceil_div(g.rows, rows);
    if (needed < walks) continue;
    const int batches = ceil_div(g.images * needed * g.strips, kPositions);
    const int cost = ceil_div(g.planes * batches, kWarps) * (rows + g.reach_h - 1 + kWalkRows);
    if (best == 0 || cost < best) {
      best = cost;
      g.walks = needed;
      g.walk_rows = rows;
    }
    if (rows == g.reach_h) break;
  }
}

// Accesses to shared memory that one load of 16 positions' columns takes: the eight of a matrix
// collide where they lie the same number of 16 bytes from a multiple of 128.
int wavefronts(const Geometry& g, int walk, int image) {
  int total = 0;
  for (int first = 0; first < kPositions; first += 8) {
    int most = 1, count[8] = {};
    for (int i = first; i < std::min(first + 8, g.images * g.walks * g.strips); ++i) {
      const int at = i % g.strips * kColumns + i / g.strips % g.walks * walk +
                     i / (g.strips * g.walks) * image;
      most = std::max(most, ++count[at / kVector % 8]);
    }
    total += most;
  }
  return total;
}

// Sets the distances of rows, planes and images, rows at least `pitch` apart and `rows` to a plane,
// so that positions fall on different banks unless that takes much more memory.
void spread(const Geometry& g, Feed& feed, int pitch, int rows) {
  double best = 0;
  for (int wider = pitch; wider <= pitch + kVector; wider += kVector) {
    const int plane = rows * wider;
    for (int more = 0; more < (g.images > 1 ? 8 * kVector : 1); more += kVector) {
      const int image = g.planes * plane + more;
      const double cost =
          kWavefrontCost * wavefronts(g, g.walk_rows * wider, image) +
          static_cast<double>(g.images) * image / (g.images * g.planes * rows * pitch);
      if (best != 0 && cost >= best) continue;
      best = cost;
      feed.stage.pitch = wider;
      feed.stage.plane = plane;
      feed.image = image;
    }
  }
}

// The place of column 0. A strip's window starts at a multiple of 8 columns and has up to 16 minus
// the 8 + reach - 1 that are read to spare, which leaves a choice: the widest copies.
void place_columns(Geometry& g) {
  Stage& s = g.source.stage;
  s.chunk = 0;
  for (int shift = 0; shift <= kMaxReachW - g.reach_w; ++shift) {
    const int left = g.w.pad + shift;
    int chunk = widest_chunk(g.w.source, 2);
    while (left % chunk != 0)
      chunk /= 2;
    // Whole runs are laid out from multiples of kRunAlign on.
    const bool better = chunk == s.chunk && left % kRunAlign == 0 && s.left % kRunAlign != 0;
    if (chunk < s.chunk || (chunk == s.chunk && !better)) continue;
    s.chunk = chunk;
    s.left = left;
    g.shift = shift;
  }
}

constexpr bool comes_whole(const Feed& feed) { return feed.stage.chunk < kNarrowestChunk; }

void choose_pieces(Feed& feed) {
  const Stage& s = feed.stage;
  feed.row_pieces =
      comes_whole(feed) ? ceil_div(s.left % kRunAlign + s.width, kRunPiece) : s.width / s.chunk;
}

// The end of the last piece of a row.
int row_end(const Feed& feed) {
  const Stage& s = feed.stage;
  return comes_whole(feed) ? s.left - s.left % kRunAlign + feed.row_pieces * kRunPiece
                           : s.left + s.width;
}

// The source, with zeros around it. The zeros to the right of a row may be those to the left of the
// next, and those below a plane the ones above the next, but no window of a result reaches the
// elements of another row or plane.
void lay_out_source(Geometry& g) {
  Stage& s = g.source.stage;
  s.height = g.h.source;
  s.width = g.w.source;
  place_columns(g);
  choose_pieces(g.source);
  const int last = (g.strips - 1) * kColumns + kWindow;  // the end of the last window
  const int pitch = round_up(std::max(last - s.left, row_end(g.source)), kVector);

  const bool whole = g.bands == 1;
  s.top = whole ? g.h.pad : 0;
  s.first_row = whole ? 0 : -g.h.pad;
  const int reached = g.rows + g.reach_h - 1;
  const int walked = g.walks * g.walk_rows + g.reach_h - 1;
  s.rows = whole ? s.height : reached;
  const int below = std::max(walked - s.top - s.rows, 0);
  spread(g, g.source, pitch, s.rows + std::max(s.top, below));
  // The last walk looks one row ahead, and a window past its row.
  s.elements = (g.images - 1) * g.source.image + (g.planes - 1) * s.plane +
               std::max(walked + 1, s.top + s.rows) * s.pitch + kWindow;
  s.elements = round_up(s.elements, kVector);
}

// The output gradient, with zeros to the right and below wherever a position reaches beyond it.
void lay_out_grad(Geometry& g) {
  Stage& s = g.grad.stage;
  s.height = g.h.result;
  s.width = g.w.result;
  s.chunk = widest_chunk(s.width, 2);
  choose_pieces(g.grad);
  s.rows = g.rows;
  spread(g, g.grad, g.strips * kColumns, g.walks * g.walk_rows);
  s.elements = (g.images - 1) * g.grad.image + g.planes * s.plane;
}

// An image's run begins anywhere in 16 bytes.
constexpr int run_elements(int elements) { return round_up(elements + kVector - 1, kVector); }

// Takes shared memory from `at` on: a place for each unit in flight, and for whole runs one to lay
// them out; the table of pieces. Returns the end.
int allocate(const Geometry& g, Feed& feed, int stages, int at) {
  const Stage& s = feed.stage;
  feed.pieces = s.rows * feed.row_pieces;
  feed.at = at;
  const int entries = round_up(g.planes * feed.pieces, kBlockPieces);
  if (!comes_whole(feed)) {
    feed.table_at = at + 2 * stages * s.elements;
    return feed.table_at + 2 * entries;
  }
  // The last piece of a run may read beyond it.
  feed.raw = run_elements(g.planes * s.rows * s.width) + kRunPiece;
  feed.table_at = at + 2 * (s.elements + stages * g.images * feed.raw);
  return feed.table_at + 4 * entries;
}

}  // namespace

Geometry geometry(const Problem& problem, const Tiling& tiling) {
  const bool mirrored = problem.pass == Pass::backward_input;
  const bool weight = problem.pass == Pass::backward_weight;
  Geometry g;
  g.h = mirrored ? mirrored_window(problem.h) : forward_window(problem.h);
  g.w = mirrored ? mirrored_window(problem.w) : forward_window(problem.w);
  g.reach_h = g.h.reach(1);
  g.reach_w = g.w.reach(1);
  g.planes = tiling.planes;
  g.groups = ceil_div(static_cast<int>(problem.channels), g.planes);
  g.images = tiling.images;
  g.image_blocks = ceil_div(static_cast<int>(problem.batch), g.images);
  g.rows = std::min(tiling.rows, g.h.result);
  g.bands = ceil_div(g.h.result, g.rows);
  g.strips = ceil_div(g.w.result, kColumns);
  g.units = static_cast<std::int64_t>(g.groups) * g.image_blocks * g.bands;
  choose_walks(g);
  g.batches = ceil_div(g.images * g.walks * g.strips, kPositions);

  const auto sizes = [&problem](Feed& feed) {
    feed.plane_elements = static_cast<std::int64_t>(feed.stage.height) * feed.stage.width;
    feed.image_elements = problem.channels * feed.plane_elements;
  };
  lay_out_source(g);
  sizes(g.source);
  int at = allocate(g, g.source, tiling.stages, kZeroBytes);
  if (weight) {
    lay_out_grad(g);
    sizes(g.grad);
    at = allocate(g, g.grad, tiling.stages, at);
  } else {
    g.result = run_elements(g.planes * g.rows * g.w.result);
  }
  const int sums = kSumRows * kWindow * kSumPitch + g.h.kernel * g.w.kernel;  // of a warp
  g.rest_at = at;
  g.shared_bytes = at + (weight ? 4 * kWarps * sums : 2 * g.images * g.result);
  return g;
}

}  // namespace dwconv::toeplitz
