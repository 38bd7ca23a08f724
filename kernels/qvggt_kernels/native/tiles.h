// Shares work among threads in tasks that have something prepared once, and cuts them into tiles.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common.h"
#include "threads.h"

namespace qvggt {

constexpr int64_t kMinRows = 16 * kTileRows;  // of a task, for what it prepares to be worth it

// Rows of each of several blocks, such as tokens of 64 outputs or queries of a head.
struct Blocks {
    int64_t count, rows;
    int64_t operations;  // of all
};

// In parallel, for every block and tile of up to six rows: tile(state, block, first row, rows),
// the last as a compile-time constant. Each thread makes one state, which is false if memory ran
// out, and calls fill(state, block) before the first tile of a block. Returns whether memory ran
// out.
template <class Make, class Fill, class Tile>
int for_tiles(const Blocks& blocks, int tasks_per_thread, int threads, Make&& make, Fill&& fill,
              Tile&& tile) {
    threads = useful(threads, blocks.operations);
    const int64_t wanted =
        std::max<int64_t>(1, tasks_per_thread * threads / std::max<int64_t>(1, blocks.count));
    const int64_t rows = std::max<int64_t>(
        kMinRows, ((blocks.rows + wanted - 1) / wanted + kTileRows - 1) / kTileRows * kTileRows);
    const int64_t runs = (blocks.rows + rows - 1) / rows;
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        auto state = make();
        int64_t held = -1;
        failed = !state;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < blocks.count * runs; ++task) {
            if (failed) continue;
            const int64_t block = task / runs;
            if (block != held) fill(state, block);
            held = block;
            const int64_t end = std::min(blocks.rows, (task % runs + 1) * rows);
            for (int64_t row = task % runs * rows; row < end; row += kTileRows)
                with_rows<kTileRows>(end - row,
                                     [&](auto count) { tile(state, block, row, count); });
        }
    }
    return failed;
}

}  // namespace qvggt
