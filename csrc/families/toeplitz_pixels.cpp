#include "toeplitz_pixels.h"

#include <cmath>

namespace dwconv::toeplitz {
namespace {

// What an H100 gets through, for the choice among tilings and among families: fitted together to
// some 12 tilings of each of 189 random problems (float16 and bfloat16). The choice is 1.8 % slower
// than the best of them on average.
constexpr double kBytesPerUs = 1.09e6;         // of pixels in pieces; a large copy moves 3.0e6
constexpr double kReread = 0.25;               // of rows that neighbouring bands read twice
constexpr double kSector = 32;                 // bytes that memory moves at least
constexpr double kPieces = 0.24;               // what pieces of that size cost more
constexpr double kSmaller = 1.33;              // and smaller ones: its power
constexpr double kOverlap = 0.41;              // of the shorter of memory and work, what is seen
constexpr double kCyclesPerUs = 1.75e3;        // of a multiprocessor
constexpr double kIssue = 4;                   // warp instructions a cycle
constexpr double kBusy = 0.74;                 // of its issue slots, at best
constexpr double kCyclesPerInstruction = 3.9;  // of one warp alone
constexpr double kLaunchUs = 4.6;              // an empty kernel takes 3.5
constexpr double kStartCycles = 6000;          // of a block
constexpr double kUnitCycles = 2800;           // waits for memory, barriers
constexpr double kTaskInstructions = 80;
constexpr double kMatrixInstructions = 5;  // of a task, for each of a channel's
// For an element that is gathered, one of an odd number of channels, and one that leaves.
constexpr double kComeInstructions = 1, kOddInstructions = 10, kLeaveInstructions = 11.8;

// Of pixels of fewer channels: 70 random problems took 1.2 times what was expected, others 1.0.
constexpr int kFewChannels = 8;
constexpr double kFew = 1.2;

// Of weight gradients: 91 random ones took times within a seventh of what these say on average, and
// the choice among families takes 1.3 % longer than the best.
constexpr double kSumUs = 4;                  // the kernel that adds the partial sums
constexpr double kDiagonalInstructions = 60;  // of a warp, for each filter row of a channel
constexpr double kSomeChannels = 1.4;         // units that have not all channels

// Instructions of a step of a walk.
double step_instructions(const Access& a, bool weight) {
  const int windows = a.windows() * a.source_rows();
  if (weight) return 20 + 12 * windows + 2.3 * a.kernel_h * a.parts;
  const double stores = a.mode == Mode::phases ? 50 : 6;
  return 8 + 16 * windows + 2.3 * a.kernel_h * a.parts + stores;
}

double estimate(const Problem& problem, const Arch& arch, const Geometry& g, int resident,
                const Deal& deal) {
  const Access& a = g.access;
  const double units = std::max<double>(static_cast<double>(g.units), 1);
  const double blocks = std::max<double>(static_cast<double>(deal.blocks), 1);
  const double most = deal.longest;
  const double resident_now = std::min<double>(resident, std::ceil(blocks / arch.multiprocessors));

  const bool weight = problem.pass == Pass::backward_weight;
  const int tasks = g.tasks();
  const double source_steps =
      static_cast<double>(g.source_rows) / (a.source_rows() * g.row_classes);
  const double steps = std::min<double>(g.steps(), std::ceil(source_steps)) + 1;
  const double matrices = weight ? 0 : kMatrixInstructions * a.kernel_h * a.parts;
  const double of_task =
      steps * step_instructions(a, weight) + kTaskInstructions + matrices + 8 * a.ring();

  const bool odd = problem.channels % 2 != 0;
  const double come = kComeInstructions + (odd ? kOddInstructions : 0);
  const double leave = weight ? come : kLeaveInstructions * (odd ? 1.5 : 1);
  const double planes = static_cast<double>(g.images) * g.channels;
  const double read = planes * g.source_rows * (g.end - g.lead);
  const double results = planes * g.result_rows * (a.mode == Mode::phases ? 2 : 1) * g.w.result;
  const double moves = (read * come + results * leave) / 32;

  const double diagonals = weight ? kDiagonalInstructions * a.kernel_h * a.windows() : 0;
  const double of_unit = tasks * of_task + g.channels * g.sharers * diagonals + moves;
  const double busy =
      std::min(kBusy, resident_now * std::min(tasks, g.warps) / (kIssue * kCyclesPerInstruction));
  const double issue = of_unit * resident_now * most / (kIssue * busy);
  // Of a warp: its channels, or its share of one.
  const int own = ceil_div(g.channels, g.warps / g.sharers);
  const int rounds =
      weight ? own * ceil_div(g.channel_tasks(), g.sharers) : ceil_div(tasks, g.warps);
  const double of_warp = rounds * of_task + own * diagonals + moves / g.warps;
  const double serial = most * (kUnitCycles + kCyclesPerInstruction * of_warp);
  const double compute = (kStartCycles + std::max(issue, serial)) / kCyclesPerUs;

  const double reread =
      std::max(0.0, static_cast<double>(g.bands) * g.source_rows / g.h.source - 1);
  const bool whole_sectors = g.groups == 1 || (problem.channels % 16 == 0 && g.channels % 16 == 0);
  const double pieces =
      whole_sectors ? 1 : 1 + kPieces * std::pow(kSector / (2.0 * g.channels), kSmaller);
  const double moved = 2.0 * static_cast<double>(problem.input_numel() + problem.output_numel());
  const double balance = most / (units / blocks);
  const double memory = moved * (1 + kReread * reread) * pieces * (0.5 + 0.5 * balance) /
                        (kBytesPerUs * arch.multiprocessors / 132);
  const double few =
      (problem.channels < kFewChannels ? kFew : 1) * (weight && g.groups > 1 ? kSomeChannels : 1);
  return kLaunchUs + (weight && !deal.whole_groups ? kSumUs : 0) +
         few * (std::max(memory, compute) + kOverlap * std::min(memory, compute));
}

}  // namespace

Candidate search_pixels(const Problem& problem, const Arch& arch) {
  const Geometry one = geometry(problem, {});
  const bool weight = problem.pass == Pass::backward_weight;
  const int threads = weight ? pixel_sum_threads(one.access) : pixel_threads(one.access);
  Candidate best;
  const auto consider = [&](int planes, int images, int rows) {
    const Tiling tiling{.planes = planes,
                        .images = images,
                        .rows = rows,
                        .stages = 1,
                        .threads = threads,
                        .places = 1};
    const Geometry g = geometry(problem, tiling);
    if (g.shared_bytes > shared_per_block(arch)) return false;
    const int by_registers =
        weight ? resident_pixel_sum_blocks(g.access) : resident_pixel_blocks(g.access);
    const int resident = std::min(by_registers, blocks_that_fit(arch, g.shared_bytes));
    consider_deals(best, problem, arch, g, tiling, resident,
                   [&](const Deal& dealt) { return estimate(problem, arch, g, resident, dealt); });
    return true;
  };
  const int results = one.h.result;
  for (const int most : {8, 12, 16, 24, 32, 48, 64}) {
    const std::int64_t groups = (problem.channels + most - 1) / most;
    const auto even = static_cast<int>((problem.channels + groups - 1) / groups);
    const int planes = problem.channels % 2 == 0 ? round_up(even, 2) : even;
    for (const int images : {1, 2, 3, 4, 5, 8, 16, 32, 64}) {
      if (images > problem.batch || !consider(planes, images, results)) break;
    }
    for (int bands = 2; bands < results; ++bands) {
      const int rows = ceil_div(results, bands);
      if (ceil_div(results, rows) != bands) continue;
      for (const int images : {1, 2, 4})
        if (images > problem.batch || !consider(planes, images, rows)) break;
    }
  }
  return best;
}

}  // namespace dwconv::toeplitz
