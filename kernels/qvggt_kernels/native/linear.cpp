// Linears with packed weights: 4-bit ones times bfloat16 or 8-bit tokens, 8-bit ones times 8-bit.
//
// A task is 64 outputs of a run of tokens. Its thread unpacks those outputs' weights once into a
// panel that stays in its second-level cache, then multiplies six tokens at a time by it. The
// panel never exists for the whole weight, so nothing but 4-bit words is read from memory.

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "threads.h"
#include "words.h"

namespace qvggt {
namespace {

constexpr int kTasksPerThread = 4;
constexpr int kMinTokens = 16 * kTileRows;

// A run of columns that is a whole number of groups and of vectors.
inline int span_of(int columns, int start) {
    return std::min(kMaxGroup, columns - start);
}

// Rows [n, n+64) of a 4-bit weight as a panel of bfloat16 pairs [columns/2][64].
void unpack_bf16(const Words& weight, int n, uint32_t* panel) {
    const int group = weight.lanes * kPlanes, columns = weight.columns();
    alignas(64) bf16 values[kLanes][kMaxGroup];
    for (int part = 0; part < kPanel; part += kLanes)
        for (int start = 0; start < columns; start += kMaxGroup) {
            const int span = span_of(columns, start);
            for (int i = 0; i < kLanes; ++i) {
                const int row = std::min(n + part + i, weight.rows - 1);
                for (int c = 0; c < span; c += group) {
                    const size_t g = size_t(row) * weight.groups + (start + c) / group;
                    look_up(weight.words + g * weight.lanes, weight.lanes,
                            repeat(round_bf16(levels(weight, g))), values[i] + c);
                }
            }
            for (int c = 0; c < span; c += 2 * kLanes) {
                __m512i rows[kLanes];
                for (int i = 0; i < kLanes; ++i) rows[i] = _mm512_load_si512(values[i] + c);
                transpose(rows);
                uint32_t* to = panel + size_t(start + c) / 2 * kPanel + part;
                for (int i = 0; i < kLanes; ++i)
                    _mm512_store_si512(to + size_t(i) * kPanel, rows[i]);
            }
        }
}

// The largest magnitude of a row of a 4-bit weight.
float largest(const Words& weight, int row) {
    const __m512i mask = _mm512_set1_epi16(15);
    float most = 0;
    for (int g = 0; g < weight.groups; ++g) {
        const size_t group = size_t(row) * weight.groups + g;
        const __mmask32 used = weight.lanes == 32 ? 0xFFFFFFFFu : (1u << weight.lanes) - 1;
        const __m512i words = _mm512_maskz_loadu_epi16(used, weight.words + group * weight.lanes);
        __m512i high = _mm512_setzero_si512(), low = mask;
        for (int plane = 0; plane < kPlanes; ++plane) {
            const __m512i number =
                _mm512_and_si512(_mm512_srl_epi16(words, _mm_cvtsi32_si128(4 * plane)), mask);
            high = _mm512_max_epu16(high, number);
            low = _mm512_mask_min_epu16(low, used, low, number);
        }
        // Both fit into bytes of their own, so one reduction finds both.
        const __m512i both =
            _mm512_or_si512(high, _mm512_slli_epi16(_mm512_sub_epi16(mask, low), 8));
        const __m256i two =
            _mm256_max_epu8(_mm512_castsi512_si256(both), _mm512_extracti64x4_epi64(both, 1));
        __m128i one = _mm_max_epu8(_mm256_castsi256_si128(two), _mm256_extracti128_si256(two, 1));
        one = _mm_max_epu8(one, _mm_srli_si128(one, 8));
        one = _mm_max_epu8(one, _mm_srli_si128(one, 4));
        one = _mm_max_epu8(one, _mm_srli_si128(one, 2));
        const int packed = _mm_cvtsi128_si32(one);
        const int highest = packed & 15, lowest = 15 - (packed >> 8 & 15);
        const int zero = weight.zeros ? weight.zeros[group] : kZero;
        const int steps = std::max(std::abs(highest - zero), std::abs(lowest - zero));
        most = std::max(most, float(steps) * std::fabs(widen(weight.scales[group])));
    }
    return most;
}

// Rows [n, n+64) of a 4-bit weight as a panel of four 8-bit numbers [columns/4][64], one scale
// per row: scales[64].
void unpack_int8(const Words& weight, int n, uint32_t* panel, float* scales) {
    const int group = weight.lanes * kPlanes, columns = weight.columns();
    alignas(64) uint16_t numbers[kMaxGroup];
    alignas(64) int8_t values[kLanes][kMaxGroup];
    for (int part = 0; part < kPanel; part += kLanes) {
        for (int i = 0; i < kLanes; ++i) {
            const float step = largest(weight, std::min(n + part + i, weight.rows - 1)) / 127.0f;
            scales[part + i] = step == 0 ? 1 : step;
        }
        for (int start = 0; start < columns; start += kMaxGroup) {
            const int span = span_of(columns, start);
            for (int i = 0; i < kLanes; ++i) {
                const int row = std::min(n + part + i, weight.rows - 1);
                const __m512 step = _mm512_set1_ps(scales[part + i]);
                for (int c = 0; c < span; c += group) {
                    const size_t g = size_t(row) * weight.groups + (start + c) / group;
                    const __m512i whole =
                        _mm512_cvtps_epi32(_mm512_div_ps(levels(weight, g), step));
                    look_up(weight.words + g * weight.lanes, weight.lanes,
                            repeat(_mm512_cvtepi32_epi16(whole)), numbers + c);
                }
                for (int c = 0; c < span; c += 32)
                    _mm256_store_si256(reinterpret_cast<__m256i*>(values[i] + c),
                                       _mm512_cvtepi16_epi8(_mm512_load_si512(numbers + c)));
            }
            for (int c = 0; c < span; c += 4 * kLanes) {
                __m512i rows[kLanes];
                for (int i = 0; i < kLanes; ++i) rows[i] = _mm512_load_si512(values[i] + c);
                transpose(rows);
                uint32_t* to = panel + size_t(start + c) / 4 * kPanel + part;
                for (int i = 0; i < kLanes; ++i)
                    _mm512_store_si512(to + size_t(i) * kPanel, rows[i]);
            }
        }
    }
}

// Columns [n, n+64) of an 8-bit weight [columns][outputs] as a panel [columns/4][64].
void pack_int8(const int8_t* weight, int64_t outputs, int columns, int n, uint32_t* panel) {
    const int used = int(std::min<int64_t>(kPanel, outputs - n));
    const __mmask64 mask = used == 64 ? ~0ull : (1ull << used) - 1;
    for (int k = 0; k < columns; k += 4, panel += kPanel) {
        __m512i row[4];
        for (int i = 0; i < 4; ++i)
            row[i] = _mm512_maskz_loadu_epi8(mask, weight + (k + i) * outputs + n);
        const __m512i a = _mm512_unpacklo_epi8(row[0], row[1]),
                      b = _mm512_unpackhi_epi8(row[0], row[1]);
        const __m512i c = _mm512_unpacklo_epi8(row[2], row[3]),
                      d = _mm512_unpackhi_epi8(row[2], row[3]);
        // Each of these has four outputs of every 16: t[i] holds outputs 16 l + 4 i + 0..3.
        const __m512i t[4] = {_mm512_unpacklo_epi16(a, c), _mm512_unpackhi_epi16(a, c),
                              _mm512_unpacklo_epi16(b, d), _mm512_unpackhi_epi16(b, d)};
        const __m512i u0 = _mm512_shuffle_i32x4(t[0], t[1], 0x44),
                      u1 = _mm512_shuffle_i32x4(t[2], t[3], 0x44);
        const __m512i u2 = _mm512_shuffle_i32x4(t[0], t[1], 0xEE),
                      u3 = _mm512_shuffle_i32x4(t[2], t[3], 0xEE);
        _mm512_store_si512(panel, _mm512_shuffle_i32x4(u0, u1, 0x88));
        _mm512_store_si512(panel + 16, _mm512_shuffle_i32x4(u0, u1, 0xDD));
        _mm512_store_si512(panel + 32, _mm512_shuffle_i32x4(u2, u3, 0x88));
        _mm512_store_si512(panel + 48, _mm512_shuffle_i32x4(u2, u3, 0xDD));
    }
}

// The weights of 64 outputs, as a thread holds them.
struct Panel {
    uint32_t* words;  // [words of a column][64]
    float* scales;    // [64], of 8-bit weights
    int32_t* base;    // [64], where sums of 8-bit products begin

    // Tokens are 128 too high, so sums are too high by 128 times an output's weights.
    void correct(int count) const {
        const __m512i ones = _mm512_set1_epi8(1);
        for (int j = 0; j < kPanel; j += kLanes) {
            __m512i sum = _mm512_setzero_si512();
            for (int w = 0; w < count; ++w)
                sum =
                    Int8Product::add(sum, ones, _mm512_load_si512(words + size_t(w) * kPanel + j));
            sum = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sum, 7));
            _mm512_store_si512(base + j, sum);
        }
    }
};

// Runs f(first output, first token, last token, panel, whether it must be filled) over all
// outputs and tokens, in parallel. Returns whether memory was wanting.
template <class F>
int share_out(int64_t tokens, int64_t outputs, int words, int threads, F&& f) {
    threads = useful(threads, (tokens + 16) * outputs * words);
    const int64_t panels = (outputs + kPanel - 1) / kPanel;
    const int64_t wanted = std::max<int64_t>(1, kTasksPerThread * threads / panels);
    const int64_t run = std::max<int64_t>(
        kMinTokens, ((tokens + wanted - 1) / wanted + kTileRows - 1) / kTileRows * kTileRows);
    const int64_t runs = (tokens + run - 1) / run;
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        const auto memory = allocate<uint32_t>((size_t(words) + 2) * kPanel);
        failed = !memory;
        const Panel panel{memory.get(),
                          reinterpret_cast<float*>(memory.get() + size_t(words) * kPanel),
                          reinterpret_cast<int32_t*>(memory.get() + size_t(words + 1) * kPanel)};
        int64_t held = -1;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < panels * runs; ++task) {
            if (failed) continue;
            const int64_t number = task / runs, start = task % runs * run;
            f(int(number * kPanel), start, std::min(tokens, start + run), panel, number != held);
            held = number;
        }
    }
    return failed;
}

template <class Out, class Fill>
int integer_linear(const uint8_t* q, const float* steps, const float* bias, Out* out,
                   int64_t tokens, int64_t outputs, int columns, int threads, Fill&& fill) {
    const int words = columns / 4;
    return share_out(
        tokens, outputs, words, threads,
        [&](int n, int64_t start, int64_t end, const Panel& panel, bool fresh) {
            if (fresh) {
                fill(n, panel.words, panel.scales);
                panel.correct(words);
            }
            for (int64_t m = start; m < end; m += kTileRows)
                with_rows(int(std::min<int64_t>(kTileRows, end - m)), [&](auto rows) {
                    constexpr int R = rows.value;
                    __m512i sums[R][kVectors];
                    for (int r = 0; r < R; ++r)
                        for (int j = 0; j < kVectors; ++j)
                            sums[r][j] = _mm512_load_si512(panel.base + j * kLanes);
                    multiply<R, Int8Product>(reinterpret_cast<const char*>(q + m * columns),
                                             columns, panel.words, words, sums);
                    for (int j = 0; j < kVectors; ++j) {
                        const __mmask16 used = first(int(outputs) - n - j * kLanes);
                        const __m512 shift =
                            bias ? load(bias + n + j * kLanes, used) : _mm512_setzero_ps();
                        const __m512 scale = _mm512_load_ps(panel.scales + j * kLanes);
                        for (int r = 0; r < R; ++r) {
                            __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[r][j]),
                                                     _mm512_set1_ps(steps[m + r]));
                            y = _mm512_mul_ps(y, scale);
                            if (bias) y = _mm512_add_ps(y, shift);
                            store(out + (m + r) * outputs + n + j * kLanes, y, used);
                        }
                    }
                });
        });
}

}  // namespace
}  // namespace qvggt

extern "C" {

// out[tokens][rows] = x[tokens][columns] W^T + bias, all bfloat16.
QVGGT_EXPORT int qvggt_int4_linear(const uint16_t* x, const uint16_t* words, const uint16_t* scales,
                                   const uint8_t* zeros, const uint16_t* bias, uint16_t* out,
                                   int64_t tokens, int64_t rows, int64_t groups, int64_t lanes,
                                   int threads) {
    using namespace qvggt;
    const Words weight{words, scales, zeros, int(rows), int(groups), int(lanes)};
    const int columns = weight.columns(), pairs = columns / 2;
    return share_out(
        tokens, rows, pairs, threads,
        [&](int n, int64_t start, int64_t end, const Panel& panel, bool fresh) {
            if (fresh) unpack_bf16(weight, n, panel.words);
            for (int64_t m = start; m < end; m += kTileRows)
                with_rows(int(std::min<int64_t>(kTileRows, end - m)), [&](auto count) {
                    constexpr int R = count.value;
                    __m512 sums[R][kVectors];
                    for (int j = 0; j < kVectors; ++j) {
                        const __m512 shift =
                            bias ? load(bias + n + j * kLanes, first(int(rows) - n - j * kLanes))
                                 : _mm512_setzero_ps();
                        for (int r = 0; r < R; ++r) sums[r][j] = shift;
                    }
                    multiply<R, Bf16Product>(reinterpret_cast<const char*>(x + m * columns),
                                             size_t(columns) * 2, panel.words, pairs, sums);
                    for (int r = 0; r < R; ++r)
                        for (int j = 0; j < kVectors; ++j)
                            store(out + (m + r) * rows + n + j * kLanes, sums[r][j],
                                  first(int(rows) - n - j * kLanes));
                });
        });
}

// out[tokens][rows] (float if `wide`, else bfloat16) = steps (q - 128) W8^T + bias, W8 being the
// 4-bit weight requantized to one scale per row.
QVGGT_EXPORT int qvggt_int4_linear_int8(const uint8_t* q, const float* steps, const uint16_t* words,
                                        const uint16_t* scales, const uint8_t* zeros,
                                        const float* bias, void* out, int wide, int64_t tokens,
                                        int64_t rows, int64_t groups, int64_t lanes, int threads) {
    using namespace qvggt;
    const Words weight{words, scales, zeros, int(rows), int(groups), int(lanes)};
    const auto fill = [&](int n, uint32_t* panel, float* kept) {
        unpack_int8(weight, n, panel, kept);
    };
    return wide ? integer_linear(q, steps, bias, static_cast<float*>(out), tokens, rows,
                                 weight.columns(), threads, fill)
                : integer_linear(q, steps, bias, static_cast<bf16*>(out), tokens, rows,
                                 weight.columns(), threads, fill);
}

// The same for an 8-bit weight [columns][outputs] with scales[outputs].
QVGGT_EXPORT int qvggt_integer_linear(const uint8_t* q, const float* steps, const int8_t* weight,
                                      const float* scales, const float* bias, void* out, int wide,
                                      int64_t tokens, int64_t outputs, int64_t columns,
                                      int threads) {
    using namespace qvggt;
    const auto fill = [&](int n, uint32_t* panel, float* kept) {
        pack_int8(weight, outputs, int(columns), n, panel);
        for (int j = 0; j < kVectors; ++j)
            _mm512_store_ps(kept + j * kLanes,
                            load(scales + n + j * kLanes, first(int(outputs) - n - j * kLanes)));
    };
    return wide ? integer_linear(q, steps, bias, static_cast<float*>(out), tokens, outputs,
                                 int(columns), threads, fill)
                : integer_linear(q, steps, bias, static_cast<bf16*>(out), tokens, outputs,
                                 int(columns), threads, fill);
}

}  // extern "C"
