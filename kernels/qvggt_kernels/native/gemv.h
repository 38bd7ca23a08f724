// A 4-bit linear for a few float32 tokens, which waits for weights and not for arithmetic.
//
// Weights are looked up into registers and used there; no panel is made. Two outputs at a time
// share what is loaded of a few tokens. `Vectors` are those of an instruction set.
#pragma once

#include <algorithm>

#include "packed_weight.h"
#include "threads.h"

namespace qvggt {
namespace {

constexpr int kWeightRows = 2;

// Outputs [row, row+2) of M tokens; the second is the first again where there is no other.
template <class Vectors, int M, int kGroupLanes>
void multiply_rows(const float* x, const PackedWeight& weight, int row, const float* bias,
                   float* out) {
    // Fewer sums than the latency of an addition has room for are made twice.
    constexpr int kChains = M <= 2 ? 2 : 1;
    constexpr int kUsed = std::min(kGroupLanes, Vectors::kLanes);
    using Floats = typename Vectors::Floats;
    const int rows[kWeightRows] = {row, std::min(row + 1, weight.rows - 1)};
    const size_t columns = weight.columns();
    Floats sums[kChains][kWeightRows][M];
    unrolled<kChains>([&](auto c) QVGGT_INLINE {
        unrolled<kWeightRows>([&](auto n) QVGGT_INLINE {
            unrolled<M>([&](auto m) QVGGT_INLINE { sums[c][n][m] = Vectors::all(0); });
        });
    });
    for (int g = 0; g < weight.groups; ++g) {
        typename Vectors::Table table[kWeightRows];
        const uint16_t* words[kWeightRows];
        unrolled<kWeightRows>([&](auto n) QVGGT_INLINE {
            const size_t at = size_t(rows[n]) * weight.groups + g;
            table[n] = Vectors::table(weight, at);
            words[n] = weight.words + at * kGroupLanes;
            // The next rows: two short runs at once are no stream that a processor predicts.
            __builtin_prefetch(words[n] + size_t(kWeightRows) * weight.groups * kGroupLanes);
        });
        const float* tokens = x + size_t(g) * kGroupLanes * kPlanes;
        unrolled<kGroupLanes / kUsed>([&](auto part) QVGGT_INLINE {
            typename Vectors::Integers packed[kWeightRows];
            unrolled<kWeightRows>([&](auto n) QVGGT_INLINE {
                packed[n] = Vectors::template words<kUsed>(words[n] + part * kUsed);
            });
            unrolled<kPlanes>([&](auto plane) QVGGT_INLINE {
                Floats values[kWeightRows];
                unrolled<kWeightRows>([&](auto n) QVGGT_INLINE {
                    values[n] = Vectors::template values<4 * plane>(packed[n], table[n]);
                });
                unrolled<M>([&](auto m) QVGGT_INLINE {
                    const Floats token = Vectors::template tokens<kUsed>(
                        tokens + m * columns + plane * kGroupLanes + part * kUsed);
                    unrolled<kWeightRows>([&](auto n) QVGGT_INLINE {
                        Floats& sum = sums[plane % kChains][n][m];
                        sum = Vectors::multiply_add(values[n], token, sum);
                    });
                });
            });
        });
    }
    unrolled<kWeightRows>([&](auto n) QVGGT_INLINE {
        unrolled<M>([&](auto m) QVGGT_INLINE {
            const Floats sum =
                kChains == 1 ? sums[0][n][m] : Vectors::add(sums[0][n][m], sums[kChains - 1][n][m]);
            out[size_t(m) * weight.rows + rows[n]] =
                Vectors::total(sum) + (bias ? bias[rows[n]] : 0.0f);
        });
    });
}

template <class Vectors, int kGroupLanes>
void multiply_all(const float* x, const PackedWeight& weight, const float* bias, float* out,
                  int64_t tokens, int threads) {
    const int columns = weight.columns();
    threads = useful(threads, (tokens + 4) * weight.rows * columns);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int row = 0; row < weight.rows; row += kWeightRows)
        for (int64_t m = 0; m < tokens; m += Vectors::kTokens) {
            const float* part = x + m * columns;
            float* to = out + m * weight.rows;
            with_rows<Vectors::kTokens>(tokens - m, [&](auto count) {
                multiply_rows<Vectors, count.value, kGroupLanes>(part, weight, row, bias, to);
            });
        }
}

template <class Vectors>
void multiply_all(const float* x, const PackedWeight& weight, const float* bias, float* out,
                  int64_t tokens, int threads) {
    switch (weight.lanes) {
        case 32:
            return multiply_all<Vectors, 32>(x, weight, bias, out, tokens, threads);
        case 16:
            return multiply_all<Vectors, 16>(x, weight, bias, out, tokens, threads);
        default:
            return multiply_all<Vectors, 8>(x, weight, bias, out, tokens, threads);
    }
}

}  // namespace
}  // namespace qvggt

// out[tokens][rows] = x[tokens][columns] W^T + bias, all float32.
#define QVGGT_EXPORT_INT4_LINEAR_ROWS(name, Vectors)                                               \
    extern "C" QVGGT_EXPORT void name(const float* x, const uint16_t* words,                       \
                                      const uint16_t* scales, const uint8_t* zeros,                \
                                      const float* bias, float* out, int64_t tokens, int64_t rows, \
                                      int64_t groups, int64_t lanes, int threads) {                \
        using namespace qvggt;                                                                     \
        const PackedWeight weight{words, scales, zeros, int(rows), int(groups), int(lanes)};       \
        multiply_all<Vectors>(x, weight, bias, out, tokens, threads);                              \
    }
