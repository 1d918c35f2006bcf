#include "tile.h"

#include <cmath>
#include <optional>
#include <vector>

#include "family.h"

namespace dwconv {
namespace {

using namespace tile;

// What an H100 gets through, for the choice among tilings and among families. Fitted to some 15
// tilings each of 1,706 problems, nearly all of them random, 942 of float32 and the others
// of float16: the choice is 3.3 % slower than the best of them on average.
constexpr double kBytesPerUs = 2.84e6;      // a large copy moves 3.0e6
constexpr double kLaunchUs = 3.5;           // an empty kernel
constexpr double kLeastUs = 6.7;            // whatever little there is to do
constexpr double kSumUs = 3.12;             // the kernel that adds the partial sums
constexpr double kIssuePerUs = 6.63e3;      // warp instructions of a multiprocessor
constexpr double kRuns = 1.06;              // bytes of runs, against those of units in turn
constexpr double kTileInstructions = 166;   // of a thread: its place, row tests
constexpr double kColumnInstructions = 94;  // the same, of a tile of one column
constexpr double kHalfResults = 60;         // instructions of a tile of phases, for 16-bit results
constexpr double kTeams = 1.05;             // teams are fewer blocks than fit
// Where another family promises as little, it is made for such problems: float16 112x112 k3 with
// stride 2 took 161 us forward and 192 for its weight gradient, and the toeplitz family 156 and
// 159.
constexpr double kAgainstOthers = 1.04;
constexpr double kWeightUs = 2.54;   // of a weight gradient: its ends
constexpr double kThirdStage = 1.1;  // of a weight gradient: its memory has better uses
// So much less do weight gradients with stride 2 take, if filters have few columns.
constexpr double kFewTapsUs = 1;
constexpr int kFewTaps = 4;
// Of what the busiest scheduler of a multiprocessor has to do more than others, the part that
// counts.
constexpr double kUneven = 0.53;

// How the warps of a multiprocessor get on.
struct Pace {
  // Warps that keep its issue slots busy, by what a thread's tile is: many columns are many sums
  // that do not wait for each other. Fewer do so by this power of their share.
  double narrow, wide, sharing;
  double power;
  double unit_instructions;  // of a warp: barriers, addresses, copies
  // Instructions that are issued in the time that shared memory takes to serve one bank of each
  // lane.
  double per_bank;
  double bytes_in_flight;  // that keep the memory busy
  double filters_us;       // until a block has other filters: those of a unit, or 128 numbers
  double ends;             // of the first unit's load and the last one's computation
};
constexpr Pace kWeights{21.2, 13.1, 14.4, 0.605, 334, 3.32, 48 << 10, 0, 1.06};
constexpr Pace kAlone{21.6, 14.4, 17.8, 0.721, 554, 2.45, 2.4 * 1024, 0.248, 0.522};
constexpr Pace kServed{20.5, 12.3, 14.2, 0.815, 376, 2.23, 0.25 * 1024, 0.348, 0.937};
constexpr double kServeUs = 1.41;  // of a unit, of the warp that serves

// Instructions of one tile, or as many as could be issued while shared memory serves it.
double tile_instructions(const Problem& problem, const Geometry& g, double per_bank) {
  const bool weight = problem.pass == Pass::backward_weight;
  const double load = problem.dtype == DType::float32 ? 1 : 2;
  if (by_phases(problem)) {
    // As counted in the compiled loops. For each pair of filter rows all rows of the tile again,
    // but for squares.
    const int rows =
        has_square_phases(problem) ? g.tile_rows + g.h.kernel - 1 : g.h.kernel * g.tile_rows;
    const double row = 6 + ceil_div(static_cast<int>(problem.w.kernel), 2) * (2 + load);
    return 190 + kHalfResults * (load - 1) + rows * row +
           static_cast<double>(problem.taps()) * (g.tile_rows + 1);
  }
  const int columns = g.access.columns;
  // Image rows that a tile reads for so many neighbouring rows of the filter.
  const auto rows_for = [&g](int filter_rows) {
    return filter_rows < g.h.stride ? g.tile_rows * filter_rows
                                    : (g.tile_rows - 1) * g.h.stride + filter_rows;
  };
  const double rows = weight ? rows_for(g.filter_rows)
                             : g.h.kernel / g.filter_rows * rows_for(g.filter_rows) +
                                   g.h.kernel % g.filter_rows * rows_for(1);
  const double taps = weight ? g.filter_rows * g.w.kernel : static_cast<double>(problem.taps());
  // Elements read one by one, and what else each of them takes; or in pieces.
  const double elements = (columns - 1) * g.access.stride() + g.w.kernel;
  const double other = columns == 1 || g.access.mode == Mode::dilated ? 1 : 0;
  const double row =
      g.access.unit == 1 ? elements * (load + other) : (columns + g.w.kernel) * load / 2;
  const double inside = skips_rows(g.access) ? share_inside(g) : 1;
  const double loaded = skips_loads(g.access) ? inside : 1;
  const double instructions = (columns == 1 ? kColumnInstructions : kTileInstructions) +
                              rows * (loaded * row + 6) +
                              taps * (inside * g.tile_rows * columns + (weight ? 0 : 1)) +
                              4.0 * g.tile_rows * std::ceil(columns / 2.0);
  if (g.access.unit > 1) return instructions;
  // Every second element: lanes meet in half of the banks.
  const double conflicts = problem.dtype == DType::float32 ? g.access.stride() : 1;
  const double banks =
      rows * loaded * elements * conflicts + (weight ? g.tile_rows * columns : taps);
  return std::max(instructions, per_bank * banks);
}

// Warps that the busiest scheduler of a multiprocessor has at work, where `working` of the `warps`
// of each block are: schedulers are given warps in turn, whether these have anything to do or not.
// N11 C163 117x23 k11 float32 took 80 us in blocks of 6 warps, all at work, and 94 of 7.
constexpr int kSchedulers = 4;
int on_busiest(int blocks, int warps, int working) {
  int counts[kSchedulers] = {};
  for (int block = 0; block < blocks; ++block) {
    for (int warp = 0; warp < working; ++warp)
      ++counts[(block * warps + warp) % kSchedulers];
  }
  return *std::max_element(std::begin(counts), std::end(counts));
}

double estimate(const Problem& problem, const Arch& arch, const Geometry& g, const Tiling& tiling,
                const Deal& deal) {
  const bool weight = problem.pass == Pass::backward_weight;
  const auto bytes = static_cast<double>(size_of(problem.dtype));
  const double units = std::max<double>(g.units, 1);
  const double blocks = std::max<double>(deal.blocks, 1);
  const double runs = deal.longest;
  const int warps = tiling.threads / 32;
  const auto on_one = static_cast<int>(std::ceil(blocks / arch.multiprocessors));

  const int rounds = ceil_div(g.items, g.round);
  const int working = rounds > 1 ? warps : std::min(ceil_div(g.items * g.roles, 32), warps);
  const bool served = tiling.served;
  const Pace& pace = weight ? kWeights : served ? kServed : kAlone;
  const double of_warp =
      rounds * tile_instructions(problem, g, pace.per_bank) + pace.unit_instructions;
  const double enough = g.access.columns == 1 ? pace.narrow
                        : g.access.unit > 1   ? pace.wide
                                              : pace.sharing;
  const int all = on_one * working;
  const int of_busiest = on_busiest(on_one, tiling.block_threads() / 32, working);
  const double issuing = all + kUneven * (kSchedulers * of_busiest - all);
  const double busy = std::min(1.0, std::pow(issuing / enough, pace.power));
  const double unit_us = issuing * of_warp / (kIssuePerUs * busy);
  // The warp that serves brings filters, some at a time; where all compute together, they all do.
  const double numbers = g.channels * static_cast<double>(problem.taps());
  const double filters_us = pace.filters_us * (served ? std::ceil(numbers / 128) : 1);
  double compute = runs * unit_us;
  if (!deal.one_group)
    compute = runs * (served ? std::max(unit_us, filters_us + kServeUs) : unit_us + filters_us);

  // Rows that neighbouring bands read twice come from the L2 and count a quarter.
  const double source_rows = g.whole() ? g.h.source : std::min(g.h.source, g.h.reach(g.rows));
  const double loaded =
      g.planes * bytes * (source_rows * g.w.source + (weight ? g.rows * g.w.result : 0.0));
  const double reread = g.bands * source_rows / g.h.source;
  const double moved = static_cast<double>(problem.input_numel() + problem.output_numel()) * bytes;
  // Who computes together has its stage filled only when all are done with the one before.
  const double in_flight = on_one * (tiling.stages - (served ? 0 : 1)) * loaded;
  const double rate = kBytesPerUs * arch.multiprocessors / 132;
  const double memory = moved * (1 + 0.25 * std::max(reread - 1, 0.0)) / rate *
                        std::max(1.0, pace.bytes_in_flight / in_flight) * runs / (units / blocks) *
                        (deal.queues > 0          ? kClaimed
                         : deal.in_turn || weight ? 1
                                                  : kRuns);
  // At first nothing can be computed, and at last nothing is left to load.
  const double ends = std::min(blocks, units) * loaded / rate + unit_us;
  double us = kLaunchUs;
  if (weight) us += kWeightUs;
  if (served) us += filters_us;
  us = us + std::max(memory, compute) + 0.1 * std::min(memory, compute) + pace.ends * ends;
  // Partial sums are written, and read back from the L2.
  if (weight && !deal.whole_groups) {
    const Partials partials = partials_of(problem, g, deal.blocks, false);
    us += kSumUs + static_cast<double>(partials.bytes()) / rate;
  }
  if (weight && tiling.stages > 2) us *= kThirdStage;
  if (weight && g.w.stride == 2 && g.w.kernel <= kFewTaps) us -= kFewTapsUs;
  if (deal.team > 1) us *= kTeams;
  return std::max(us * kAgainstOthers, kLeastUs);
}

// Tiles to choose from; where geometry() knows the height, there is one.
struct Tile {
  int rows, columns;
};
std::vector<Tile> tiles_of(const Problem& problem, const Geometry& g) {
  if (by_phases(problem) || g.access.unit > 1) return {{g.tile_rows, g.access.columns}};
  const bool weight = problem.pass == Pass::backward_weight;
  std::vector<Tile> tiles;
  if (has_one_column(problem.dtype, g.access.mode, g.w.kernel)) {
    tiles.push_back({weight ? g.tile_rows : kTileRows, 1});
    if (!weight && has_tall_tiles(g.access.mode, g.w.kernel)) tiles.push_back({kTallRows, 1});
  }
  if (has_sharing_columns(problem.dtype, g.access.mode, g.w.kernel))
    tiles.push_back({g.tile_rows, kSharingColumns});
  if (has_few_columns(g.access.mode, g.w.kernel)) tiles.push_back({kFewRows, kFewColumns});
  return tiles;
}

// The tiling with the lowest estimate; us < 0 where none fits.
Candidate search(const Problem& problem, const Arch& arch) {
  Candidate best;
  const auto consider = [&](const Tiling& tiling) {
    const Geometry g = geometry(problem, tiling);
    if (g.round == 0 || g.shared_bytes > shared_per_block(arch)) return false;
    const int blocks = by_phases(problem)
                           ? kStepBlocks
                           : resident_blocks(g.access, g.tile_rows, g.filter_rows, g.w.kernel);
    const int resident = std::min(blocks * kMaxThreads / tiling.block_threads(),
                                  blocks_that_fit(arch, g.shared_bytes));
    consider_deals(best, problem, arch, g, tiling, resident,
                   [&](const Deal& dealt) { return estimate(problem, arch, g, tiling, dealt); });
    return true;
  };
  // Whole planes: channels of one image, or all channels of several. A plane of a tiny image is a
  // tile or two, so there the number grows by doubling, by way of the one that gives each thread a
  // tile, as far as memory goes.
  const auto most_planes = static_cast<int>(std::min<std::int64_t>(64, problem.channels));
  const auto consider_planes = [&](Tiling tiling) {
    for (; tiling.planes <= most_planes; ++tiling.planes)
      if (!consider(tiling)) return;
    if (problem.channels > most_planes) return;
    tiling.planes = most_planes;
    const Geometry g = geometry(problem, tiling);
    const int busy = tiling.threads / (g.roles * g.items);
    const auto next = [busy](int images) {
      return images < busy ? std::min(2 * images, busy) : 2 * images;
    };
    for (tiling.images = next(1); tiling.images <= problem.batch;
         tiling.images = next(tiling.images))
      if (!consider(tiling)) return;
  };
  const auto consider_bands = [&](Tiling tiling) {
    const Geometry g = geometry(problem, tiling);
    const int results = g.h.result, step = g.tile_rows * g.h.dilation;
    for (const int rows : {1, 2, 4}) {
      tiling.rows = rows;
      if (rows < std::min(step, results)) consider(tiling);
    }
    // With a last band that is much smaller, some blocks have less to do than others: N3 C97 73x109
    // k11 float32 took 50 us in bands of 56 and 17 rows, and 38 whole.
    const auto lopsided = [results](int rows) { return 2 * ((results - 1) % rows + 1) < rows; };
    for (int tiles = 1; tiles <= 16 && tiles * step < results; ++tiles) {
      tiling.rows = tiles * step;
      if (tiles > 1 && lopsided(tiling.rows)) continue;
      if (!consider(tiling)) break;
    }
  };
  const auto consider_all = [&](const Tiling& tiling) {
    consider_planes(tiling);
    consider_bands(tiling);
  };
  const Geometry one = geometry(problem, {});
  for (const Tile& tile : tiles_of(problem, one)) {
    const Geometry of_tile = geometry(problem, {.tile_rows = tile.rows, .columns = tile.columns});
    const bool servable = may_be_served(problem, arch, of_tile);
    // Units of one to three warps wait too often: N128 C960 7x7 k3 float32 took 30 us forward and
    // 43 for its weight gradient in blocks of 64, and 26 and 37 in larger ones.
    for (const int threads : {128, 192, 224, 256}) {
      for (const int stages : {2, 3}) {
        Tiling tiling{.rows = one.h.result,
                      .stages = stages,
                      .threads = threads,
                      .tile_rows = tile.rows,
                      .columns = tile.columns};
        consider_all(tiling);
        if (!servable) continue;
        tiling.served = true;
        tiling.threads -= 32;  // in all as many
        consider_all(tiling);
      }
    }
  }
  return best;
}

std::optional<std::string> refuse(const Problem& problem) {
  const Axis &h = problem.h, &w = problem.w;
  if (problem.multiplier != 1) return "it takes one filter per channel";
  if (w.kernel > kMaxKernel || h.kernel > kMaxKernel) {
    return "it takes kernels of up to " + std::to_string(kMaxKernel) + " x " +
           std::to_string(kMaxKernel);
  }
  if (h.stride != w.stride || h.stride > 2) return "it takes stride 1 or 2, the same on both axes";
  if (h.stride == 2 && std::max(h.dilation, w.dilation) > 1) {
    return "it takes no dilation with stride 2";
  }
  if (padding_holds_results(problem)) {
    return "some results lie wholly in the padding";
  }
  // Positions within an image are counted in 32 bits, and within a unit with a dilation in fewer.
  constexpr std::int64_t kMaxSide = 1 << 15;
  if (std::max({h.input, w.input, h.output(), w.output(), h.dilation, w.dilation}) > kMaxSide ||
      problem.batch >= std::int64_t{1} << 31 || problem.channels >= std::int64_t{1} << 31) {
    return "images, batch or channels are too large for it";
  }
  return std::nullopt;
}

// The zeros of the padding meet filters, never an image; but an output gradient that a tile lacks
// is a zero that meets one.
bool spreads_nonfinite(const Problem& problem) { return problem.pass == Pass::backward_weight; }

Answer plan_launch(const Kernel& kernel, const Problem& problem, const Arch& arch) {
  if (auto reason = refuse(problem)) return *std::move(reason);
  const Candidate best = search(problem, arch);
  if (best.us < 0) return "its rows do not fit the shared memory of the device";
  return plan_of(kernel, problem, arch, best, geometry(problem, best.tiling));
}

}  // namespace

const FamilyPlanner kTilePlanner{plan_launch, spreads_nonfinite};

}  // namespace dwconv
