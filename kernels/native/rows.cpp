// A 4-bit linear for a few float32 tokens, which waits for weights and not for arithmetic.
//
// Weights are looked up into registers and used there; no panel is made. Two outputs at a time
// share what is loaded of up to eight tokens.

#include <algorithm>
#include <type_traits>

#include "threads.h"
#include "words.h"

namespace qvggt {
namespace {

constexpr int kTokens = 8;

// out[M][rows] of two neighbouring outputs; the second may be the first again.
template <int M>
void multiply_rows(const float* x, const Words& weight, int first_row, int second_row,
                   const float* bias, float* out) {
    const int rows[2] = {first_row, second_row};
    const int columns = weight.columns(), lanes = weight.lanes;
    __m512 sums[2][M];
    for (int n = 0; n < 2; ++n)
        for (int m = 0; m < M; ++m) sums[n][m] = _mm512_setzero_ps();
    for (int g = 0; g < weight.groups; ++g) {
        __m512 table[2];
        size_t at[2];
        for (int n = 0; n < 2; ++n) {
            at[n] = size_t(rows[n]) * weight.groups + g;
            table[n] = levels(weight, at[n]);
        }
        for (int lane = 0; lane < lanes; lane += kLanes) {
            // A group of 32 columns has eight words only: half of a vector stays zero.
            const __mmask16 used = first(lanes - lane);
            __m512i words[2];
            for (int n = 0; n < 2; ++n)
                words[n] = _mm512_cvtepu16_epi32(
                    _mm256_maskz_loadu_epi16(used, weight.words + at[n] * lanes + lane));
            for (int plane = 0; plane < kPlanes; ++plane) {
                const float* tokens = x + g * weight.group() + plane * lanes + lane;
                __m512 values[2];
                for (int n = 0; n < 2; ++n) {
                    values[n] = _mm512_permutexvar_ps(words[n], table[n]);
                    words[n] = _mm512_srli_epi32(words[n], 4);
                }
                for (int m = 0; m < M; ++m) {
                    const __m512 token = load(tokens + size_t(m) * columns, used);
                    for (int n = 0; n < 2; ++n)
                        sums[n][m] = _mm512_fmadd_ps(values[n], token, sums[n][m]);
                }
            }
        }
    }
    for (int n = 0; n < 2; ++n)
        for (int m = 0; m < M; ++m)
            out[size_t(m) * weight.rows + rows[n]] =
                _mm512_reduce_add_ps(sums[n][m]) + (bias ? bias[rows[n]] : 0.0f);
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
    const Words weight{words, scales, zeros, int(rows), int(groups), int(lanes)};
    const int columns = weight.columns();
    const int64_t pairs = (rows + 1) / 2;
#pragma omp parallel for num_threads(useful(threads, (tokens + 4) * rows * columns)) \
    schedule(static)
    for (int64_t pair = 0; pair < pairs; ++pair) {
        const int a = int(2 * pair), b = std::min(a + 1, int(rows) - 1);
        for (int64_t m = 0; m < tokens; m += kTokens) {
            const float* part = x + m * columns;
            float* to = out + m * rows;
            switch (std::min<int64_t>(kTokens, tokens - m)) {
                case 1:
                    multiply_rows<1>(part, weight, a, b, bias, to);
                    break;
                case 2:
                    multiply_rows<2>(part, weight, a, b, bias, to);
                    break;
                case 3:
                    multiply_rows<3>(part, weight, a, b, bias, to);
                    break;
                case 4:
                    multiply_rows<4>(part, weight, a, b, bias, to);
                    break;
                case 5:
                    multiply_rows<5>(part, weight, a, b, bias, to);
                    break;
                case 6:
                    multiply_rows<6>(part, weight, a, b, bias, to);
                    break;
                case 7:
                    multiply_rows<7>(part, weight, a, b, bias, to);
                    break;
                default:
                    multiply_rows<kTokens>(part, weight, a, b, bias, to);
            }
        }
    }
}
