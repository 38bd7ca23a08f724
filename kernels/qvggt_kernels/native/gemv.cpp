// A 4-bit linear for a few float32 tokens, which waits for weights and not for arithmetic.
//
// Weights are looked up into registers and used there; no panel is made. Two outputs at a time
// share what is loaded of up to eight tokens.

#include <algorithm>
#include <type_traits>

#include "threads.h"
#include "unpack.h"

namespace qvggt {
namespace {

constexpr int kTokens = 8;
constexpr int kOutputs = 2;

// Outputs [row, row+2) of M tokens; the second is the first again where there is no other.
template <int M, int kGroupLanes>
void multiply_rows(const float* x, const PackedWeight& weight, int row, const float* bias,
                   float* out) {
    // Fewer sums than the latency of an addition has room for are made twice.
    constexpr int kChains = M <= 2 ? 2 : 1;
    constexpr __mmask16 used = kGroupLanes < kLanes ? (1 << kGroupLanes) - 1 : 0xFFFF;
    const int rows[kOutputs] = {row, std::min(row + 1, weight.rows - 1)};
    const size_t columns = weight.columns();
    __m512 sums[kChains][kOutputs][M];
    unrolled<kChains>([&](auto c) QVGGT_INLINE {
        unrolled<kOutputs>([&](auto n) QVGGT_INLINE {
            unrolled<M>([&](auto m) QVGGT_INLINE { sums[c][n][m] = _mm512_setzero_ps(); });
        });
    });
    for (int g = 0; g < weight.groups; ++g) {
        __m512 table[kOutputs];
        const uint16_t* words[kOutputs];
        unrolled<kOutputs>([&](auto n) QVGGT_INLINE {
            const size_t at = size_t(rows[n]) * weight.groups + g;
            table[n] = levels(weight, at);
            words[n] = weight.words + at * kGroupLanes;
            // The next rows: two short runs at once are no stream that a processor predicts.
            _mm_prefetch(words[n] + size_t(kOutputs) * weight.groups * kGroupLanes, _MM_HINT_T0);
        });
        const float* tokens = x + size_t(g) * kGroupLanes * kPlanes;
        unrolled<(kGroupLanes + kLanes - 1) / kLanes>([&](auto part) QVGGT_INLINE {
            __m512i packed[kOutputs];
            unrolled<kOutputs>([&](auto n) QVGGT_INLINE {
                packed[n] =
                    _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(used, words[n] + part * kLanes));
            });
            unrolled<kPlanes>([&](auto plane) QVGGT_INLINE {
                __m512 values[kOutputs];
                unrolled<kOutputs>([&](auto n) QVGGT_INLINE {
                    values[n] =
                        _mm512_permutexvar_ps(_mm512_srli_epi32(packed[n], 4 * plane), table[n]);
                });
                unrolled<M>([&](auto m) QVGGT_INLINE {
                    const __m512 token =
                        load(tokens + m * columns + plane * kGroupLanes + part * kLanes, used);
                    unrolled<kOutputs>([&](auto n) QVGGT_INLINE {
                        __m512& sum = sums[plane % kChains][n][m];
                        sum = _mm512_fmadd_ps(values[n], token, sum);
                    });
                });
            });
        });
    }
    unrolled<kOutputs>([&](auto n) QVGGT_INLINE {
        unrolled<M>([&](auto m) QVGGT_INLINE {
            const __m512 sum = kChains == 1 ? sums[0][n][m]
                                            : _mm512_add_ps(sums[0][n][m], sums[kChains - 1][n][m]);
            out[size_t(m) * weight.rows + rows[n]] =
                _mm512_reduce_add_ps(sum) + (bias ? bias[rows[n]] : 0.0f);
        });
    });
}

template <int kGroupLanes>
void multiply_all(const float* x, const PackedWeight& weight, const float* bias, float* out,
                  int64_t tokens, int threads) {
    const int columns = weight.columns();
    threads = useful(threads, (tokens + 4) * weight.rows * columns);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int row = 0; row < weight.rows; row += kOutputs)
        for (int64_t m = 0; m < tokens; m += kTokens) {
            const float* part = x + m * columns;
            float* to = out + m * weight.rows;
            with_rows<kTokens>(tokens - m, [&](auto count) {
                multiply_rows<count.value, kGroupLanes>(part, weight, row, bias, to);
            });
        }
}

}  // namespace
}  // namespace qvggt

// out[tokens][rows] = x[tokens][columns] W^T + bias, all float32.
extern "C" QVGGT_EXPORT void qvggt_int4_linear_rows(const float* x, const uint16_t* words,
                                                    const uint16_t* scales, const uint8_t* zeros,
                                                    const float* bias, float* out, int64_t tokens,
                                                    int64_t rows, int64_t groups, int64_t lanes,
                                                    int threads) {
    using namespace qvggt;
    const PackedWeight weight{words, scales, zeros, int(rows), int(groups), int(lanes)};
    switch (lanes) {
        case 32:
            multiply_all<32>(x, weight, bias, out, tokens, threads);
            break;
        case 16:
            multiply_all<16>(x, weight, bias, out, tokens, threads);
            break;
        default:
            multiply_all<8>(x, weight, bias, out, tokens, threads);
    }
}
