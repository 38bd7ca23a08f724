// 4-bit linears of float32 tokens with short vectors, for many tokens: a dense product whose weight
// never exists as a whole.
//
// A task is 64 outputs of a run of tokens and 512 columns. Its thread turns those weights into a
// panel of floats that its second-level cache holds, multiplies six tokens at a time by it, and
// adds the sums to what earlier columns gave.

#include <algorithm>

#include "short_vectors.h"
#include "tiles.h"

namespace qvggt {
namespace {

constexpr int kAll = 4 * kOutputs;  // outputs of a panel
constexpr int kDepth = 512;         // columns of a panel; groups divide it
constexpr int kTasksPerThread = 4;

// Columns [start, start+count) of outputs [n, n+16) as a panel [count][16] of exact floats.
void unpack(const PackedWeight& weight, int n, int start, int count, float* panel) {
    const int group = weight.lanes * kPlanes;
    alignas(64) float values[kOutputs][kMaxGroup];
    for (int c = 0; c < count; c += group, panel += group * kOutputs) {
        for (int i = 0; i < kOutputs; ++i) {
            const size_t at =
                size_t(std::min(n + i, weight.rows - 1)) * weight.groups + (start + c) / group;
            const Floats scale = all(widen(weight.scales[at]));
            const Floats zero = all(float(weight.zeros ? weight.zeros[at] : kZero));
            for (int j = 0; j < weight.lanes; j += kLanes) {
                const Integers words = load_words(weight.words + at * weight.lanes + j);
                unrolled<kPlanes>([&](auto plane) QVGGT_INLINE {
                    const Floats numbers = to_floats(number<4 * plane>(words));
                    store(values[i] + plane * weight.lanes + j, (numbers - zero) * scale);
                });
            }
        }
        for (int k = 0; k < group; k += 4)
            for (int i = 0; i < kOutputs; i += 4)
                transpose({values[i] + k, values[i + 1] + k, values[i + 2] + k, values[i + 3] + k},
                          reinterpret_cast<uint32_t*>(panel + k * kOutputs + i), kOutputs);
    }
}

// Rows of `columns` numbers, of which `depth` from `start` on are multiplied.
struct Tokens {
    const float* x;
    int64_t count;
    int columns, start, depth;
};

// Products of R tokens with 16 outputs. In a function of their own sums stay in registers.
template <int R>
__attribute__((noinline)) void multiply_tile(const Tokens& tokens, int64_t m, const float* panel,
                                             float* products) {
    Floats sums[R][kVectors] = {};
    multiply<R>(tokens.x + m * tokens.columns + tokens.start, tokens.columns, panel, tokens.depth,
                sums);
    unrolled<R>([&](auto r) QVGGT_INLINE {
        unrolled<kVectors>(
            [&](auto j) QVGGT_INLINE { store(products + r * kOutputs + j * kLanes, sums[r][j]); });
    });
}

// Adds a run of columns' products to out[tokens][rows]. Returns whether memory ran out.
int multiply_columns(const Tokens& tokens, const PackedWeight& weight, const float* bias,
                     float* out, int threads) {
    const int64_t rows = weight.rows;
    const Blocks blocks{(rows + kAll - 1) / kAll, tokens.count,
                        (tokens.count + 16) * rows * tokens.depth};
    const auto for_parts = [&](const Buffer<float>& panels, int64_t block, auto&& f) {
        for (int64_t n = block * kAll; n < std::min(rows, (block + 1) * kAll); n += kOutputs)
            f(n, panels.get() + (n - block * kAll) * tokens.depth);
    };
    const auto fill = [&](const Buffer<float>& panels, int64_t block) {
        for_parts(panels, block, [&](int64_t n, float* panel) {
            unpack(weight, int(n), tokens.start, tokens.depth, panel);
        });
    };
    const auto tile = [&](const Buffer<float>& panels, int64_t block, int64_t m, auto count) {
        constexpr int R = count.value;
        for_parts(panels, block, [&](int64_t n, const float* panel) {
            alignas(64) float products[R * kOutputs];
            multiply_tile<R>(tokens, m, panel, products);
            const int64_t used = std::min<int64_t>(kOutputs, rows - n);
            for (int r = 0; r < R; ++r)
                for (int64_t i = 0; i < used; ++i) {
                    float& to = out[(m + r) * rows + n + i];
                    const float before = tokens.start ? to : bias ? bias[n + i] : 0;
                    to = before + products[r * kOutputs + i];
                }
        });
    };
    return for_tiles(
        blocks, kTasksPerThread, threads,
        [&] { return allocate<float>(size_t(kAll) * tokens.depth); }, fill, tile);
}

}  // namespace
}  // namespace qvggt

// out[tokens][rows] = x[tokens][columns] W^T + bias, all float32.
extern "C" QVGGT_EXPORT int QVGGT_SHORT(qvggt_int4_linear_float32)(
    const float* x, const uint16_t* words, const uint16_t* scales, const uint8_t* zeros,
    const float* bias, float* out, int64_t tokens, int64_t rows, int64_t groups, int64_t lanes,
    int threads) {
    using namespace qvggt;
    const PackedWeight weight{words, scales, zeros, int(rows), int(groups), int(lanes)};
    const int columns = weight.columns();
    int failed = 0;
    for (int start = 0; start < columns && !failed; start += kDepth)
        failed =
            multiply_columns(Tokens{x, tokens, columns, start, std::min(kDepth, columns - start)},
                             weight, bias, out, threads);
    return failed;
}
