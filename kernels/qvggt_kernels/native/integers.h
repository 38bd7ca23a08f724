// Linears that multiply 8-bit tokens by weights of 8 or 4 bits with short vectors.
//
// A task is 64 outputs of a run of tokens. Its thread turns those outputs' weights into a panel
// that its second-level cache holds, then multiplies six tokens at a time by it. Columns that share
// a scale per output are a segment: all columns of a row, or a group of a 4-bit weight. Sums of a
// segment are exact integers; floats are rounded one by one, in the reference's order.
//
// How integers are multiplied is a `Product`:
//   kCopies: forms of a weight that it reads; prepare(words, count) makes them of the first
//   multiply<R>(rows, stride, panel, words, sums): adds the products of R rows to
//     sums[R][kVectors]; words are a multiple of eight
#pragma once

#include <algorithm>

#include "short_vectors.h"
#include "tiles.h"

namespace qvggt {
namespace {

constexpr int kParts = 4;  // products with a tile of tokens while it is in the first-level cache
constexpr int kTasksPerThread = 4;

// Rows of 8-bit numbers, kTokenZero too high.
struct Tokens {
    const uint8_t* q;    // [count][columns]
    const float* steps;  // [count]
    int64_t count;
    int columns;
};

// The weights of 16 outputs in the columns that share these scales.
struct Segment {
    uint32_t* words;   // [copies][words][16], each four columns of an output
    float* scales;     // [16]
    int32_t* base;     // [16], where sums begin
    int32_t* offsets;  // [16], what is to be added to each weight besides
};

// Weights of 4 x 16 outputs as a thread holds them.
class Panel {
 public:
    Panel(int segments, int words, int copies)
        : segments_(segments),
          words_(words),
          stride_((size_t(words) * copies + 3) * kOutputs),
          memory_(allocate<uint32_t>(stride_ * segments * kParts)),
          totals_(allocate<int32_t>(size_t(segments) * kTileRows)) {}

    explicit operator bool() const { return memory_ && totals_; }
    int segments() const { return segments_; }
    int words() const { return words_; }

    Segment segment(int part, int index) const {
        uint32_t* words = memory_.get() + stride_ * (size_t(part) * segments_ + index);
        int32_t* last = reinterpret_cast<int32_t*>(words + stride_);
        return {words, reinterpret_cast<float*>(last - 3 * kOutputs), last - 2 * kOutputs,
                last - kOutputs};
    }

    // Sums of a tile's rows in each segment, [segments] of each row.
    int32_t* totals(int row) const { return totals_.get() + size_t(row) * segments_; }

 private:
    int segments_, words_;
    size_t stride_;
    Buffer<uint32_t> memory_;
    Buffer<int32_t> totals_;
};

// Group g of rows [n, n+16) of a 4-bit weight as words [group/4][16] of a panel: the numbers that
// entries(output, group's index) has for them.
template <class Entries>
inline void unpack_group(const PackedWeight& weight, int n, int g, uint32_t* to,
                         Entries&& entries) {
    alignas(32) int8_t values[kOutputs][kMaxGroup];
    for (int i = 0; i < kOutputs; ++i) {
        const size_t at = size_t(std::min(n + i, weight.rows - 1)) * weight.groups + g;
        look_up(weight.words + at * weight.lanes, weight.lanes, entries(i, at), values[i]);
    }
    for (int c = 0; c < weight.lanes * kPlanes; c += 16, to += 4 * kOutputs)
        for (int i = 0; i < kOutputs; i += 4)
            transpose({values[i] + c, values[i + 1] + c, values[i + 2] + c, values[i + 3] + c},
                      to + i, kOutputs);
}

// Columns [n, n+16) of an 8-bit weight [columns][outputs] as a panel [columns/4][16].
inline void pack(const int8_t* weight, int64_t outputs, int columns, int n, uint32_t* panel) {
    const int used = int(std::min<int64_t>(kOutputs, outputs - n));
    for (int k = 0; k < columns; k += 4, panel += kOutputs) {
        int8_t copies[4][kOutputs] = {};
        const int8_t* rows[4];
        for (int i = 0; i < 4; ++i) {
            rows[i] = weight + (k + i) * outputs + n;
            if (used == kOutputs) continue;
            std::copy(rows[i], rows[i] + used, copies[i]);
            rows[i] = copies[i];
        }
        interleave(rows, panel);
    }
}

// Tokens are too high, and sums by as much times an output's weights.
inline void correct(const Segment& segment, int words) {
    for (int j = 0; j < kOutputs; j += kLanes) {
        Integers sum = all(0);
        for (int w = 0; w < words; ++w)
            sum = add(sum, sum_of_weights(load_integers(segment.words + size_t(w) * kOutputs + j)));
        store_integers(segment.base + j, multiply(sum, all(-kTokenZero)));
    }
}

// A tile's sums in each segment, for weights with offsets.
inline void sum_rows(const Tokens& tokens, int64_t m, int rows, const Panel& panel) {
    const int columns = 4 * panel.words();
    for (int r = 0; r < rows; ++r)
        for (int index = 0; index < panel.segments(); ++index)
            panel.totals(r)[index] =
                sum_of_tokens(tokens.q + (m + r) * tokens.columns + size_t(index) * columns,
                              columns) -
                kTokenZero * columns;
}

// Where sums of R rows begin in a segment.
template <int R>
QVGGT_INLINE inline void begin(const Panel& panel, const Segment& segment, int index,
                               bool has_offsets, Integers (&sums)[R][kVectors]) {
    unrolled<kVectors>([&](auto j) QVGGT_INLINE {
        const Integers base = load_integers(segment.base + j * kLanes);
        unrolled<R>([&](auto r) QVGGT_INLINE { sums[r][j] = base; });
        if (!has_offsets) return;
        const Integers offset = load_integers(segment.offsets + j * kLanes);
        unrolled<R>([&](auto r) QVGGT_INLINE {
            sums[r][j] = add(base, multiply(offset, all(panel.totals(r)[index])));
        });
    });
}

// Products of R tokens with one part of a panel, scaled by steps and scales: y[R][kVectors].
template <class Product, int R>
QVGGT_INLINE inline void multiply_segments(const Tokens& tokens, int64_t m, const Panel& panel,
                                           int part, bool has_offsets, Floats (&y)[R][kVectors]) {
    // Adding it leaves every number as it is.
    unrolled<R>([&](auto r) QVGGT_INLINE {
        unrolled<kVectors>([&](auto j) QVGGT_INLINE { y[r][j] = all(-0.0f); });
    });
    const uint8_t* rows = tokens.q + m * tokens.columns;
    for (int index = 0; index < panel.segments(); ++index, rows += 4 * size_t(panel.words())) {
        const Segment segment = panel.segment(part, index);
        Integers sums[R][kVectors];
        begin<R>(panel, segment, index, has_offsets, sums);
        Product::template multiply<R>(rows, tokens.columns, segment.words, panel.words(), sums);
        unrolled<R>([&](auto r) QVGGT_INLINE {
            const Floats step = all(tokens.steps[m + r]);
            unrolled<kVectors>([&](auto j) QVGGT_INLINE {
                const Floats scaled = to_floats(sums[r][j]) * step;
                y[r][j] = y[r][j] + scaled * load(segment.scales + j * kLanes);
            });
        });
    }
}

// Rows of `stride` floats if `wide`, else of bfloat16.
struct Output {
    void* rows;
    int64_t stride;
    bool wide;

    QVGGT_INLINE void put(int64_t row, int64_t column, Floats values, int count) const {
        const int64_t at = row * stride + column;
        if (wide)
            store(static_cast<float*>(rows) + at, values, count);
        else
            store(static_cast<bf16*>(rows) + at, values, count);
    }
};

// y + bias to outputs [n, n+16) of rows [m, m+R), as far as there are outputs.
template <int R>
QVGGT_INLINE inline void store_tile(const Floats (&y)[R][kVectors], const float* bias,
                                    const Output& out, int64_t m, int64_t n) {
    unrolled<kVectors>([&](auto j) QVGGT_INLINE {
        const int64_t column = n + j * kLanes;
        const int count = int(std::clamp<int64_t>(out.stride - column, 0, kLanes));
        float shift[kLanes] = {};
        if (bias) std::copy(bias + column, bias + column + count, shift);
        unrolled<R>([&](auto r) QVGGT_INLINE {
            const Floats sum = bias ? y[r][j] + load(shift) : y[r][j];
            out.put(m + r, column, sum, count);
        });
    });
}

// A weight as a linear needs it: fill(first output, panel, part) writes words and scales, and
// offsets where it has them.
template <class Fill>
struct Weight {
    int64_t outputs;
    int segments;
    bool has_offsets;
    const float* bias;  // [outputs], or null
    Fill fill;
};

// out[tokens][outputs] = tokens times a weight. Returns whether memory ran out.
template <class Product, class Fill>
int multiply(const Tokens& tokens, const Weight<Fill>& weight, const Output& out, int threads) {
    constexpr int64_t kAll = kParts * kOutputs;
    const int64_t outputs = weight.outputs;
    const int words = tokens.columns / 4 / weight.segments;
    const Blocks blocks{(outputs + kAll - 1) / kAll, tokens.count,
                        (tokens.count + 16) * outputs * (tokens.columns / 2)};
    const auto parts = [&](int64_t block) {
        return int(std::min<int64_t>(kParts, (outputs - block * kAll + kOutputs - 1) / kOutputs));
    };
    const auto fill = [&](const Panel& panel, int64_t block) {
        for (int part = 0; part < parts(block); ++part) {
            weight.fill(int(block * kAll + part * kOutputs), panel, part);
            for (int index = 0; index < panel.segments(); ++index) {
                correct(panel.segment(part, index), words);
                Product::prepare(panel.segment(part, index).words, words);
            }
        }
    };
    const auto tile = [&](const Panel& panel, int64_t block, int64_t m, auto count) {
        constexpr int R = count.value;
        if (weight.has_offsets) sum_rows(tokens, m, R, panel);
        for (int part = 0; part < parts(block); ++part) {
            Floats y[R][kVectors];
            multiply_segments<Product>(tokens, m, panel, part, weight.has_offsets, y);
            store_tile<R>(y, weight.bias, out, m, block * kAll + part * kOutputs);
        }
    };
    return for_tiles(
        blocks, kTasksPerThread, threads,
        [&] { return Panel(weight.segments, words, Product::kCopies); }, fill, tile);
}

// The same for an 8-bit weight [columns][outputs] with scales[outputs].
template <class Product>
int multiply_8_bits(const Tokens& tokens, const int8_t* weight, const float* scales,
                    const float* bias, const Output& out, int threads) {
    const int64_t outputs = out.stride;
    const auto fill = [&](int n, const Panel& panel, int part) {
        const Segment all = panel.segment(part, 0);
        pack(weight, outputs, tokens.columns, n, all.words);
        std::copy(scales + n, scales + std::min<int64_t>(outputs, n + kOutputs), all.scales);
    };
    return multiply<Product>(tokens, Weight<decltype(fill)>{outputs, 1, false, bias, fill}, out,
                             threads);
}

}  // namespace
}  // namespace qvggt
