// Linears: weights of four bits or bfloat16 times bfloat16 tokens, of four or eight bits times
// 8-bit ones, float32 times float32.
//
// A task is 64 outputs of a run of tokens. Its thread unpacks those outputs' weights once into a
// panel that stays in its second-level cache, then multiplies six tokens at a time by it. The
// panel never exists for the whole weight, so nothing but 4-bit words is read from memory.

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "tiles.h"
#include "unpack.h"

namespace qvggt {
namespace {

constexpr int kTasksPerThread = 4;

// A run of columns that is a whole number of groups and of vectors.
inline int span_of(int columns, int start) {
    return std::min(kMaxGroup, columns - start);
}

// 16 rows of `span` numbers from column `start` on as 16 outputs of a panel, a word at a time.
template <class T>
inline void store_outputs(const T (&values)[kLanes][kMaxGroup], int start, int span,
                          uint32_t* panel) {
    constexpr int numbers = sizeof(uint32_t) / sizeof(T);  // of a word
    for (int c = 0; c < span; c += numbers * kLanes) {
        __m512i rows[kLanes];
        for (int i = 0; i < kLanes; ++i) rows[i] = _mm512_load_si512(values[i] + c);
        transpose(rows);
        uint32_t* to = panel + size_t(start + c) / numbers * kPanel;
        for (int i = 0; i < kLanes; ++i) _mm512_store_si512(to + size_t(i) * kPanel, rows[i]);
    }
}

// Rows [n, n+64) of a 4-bit weight as a panel of bfloat16 pairs [columns/2][64].
void unpack_bf16(const PackedWeight& weight, int n, uint32_t* panel) {
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
            store_outputs(values, start, span, panel + part);
        }
}

// Rows [n, n+64) of a weight as a panel of words [words of a row][64].
template <class T>
void pack(const T* weight, int rows, int columns, int n, uint32_t* panel) {
    alignas(64) T values[kLanes][kMaxGroup];
    for (int part = 0; part < kPanel; part += kLanes)
        for (int start = 0; start < columns; start += kMaxGroup) {
            const int span = span_of(columns, start);
            for (int i = 0; i < kLanes; ++i) {
                const int row = std::min(n + part + i, rows - 1);
                std::copy_n(weight + size_t(row) * columns + start, span, values[i]);
            }
            store_outputs(values, start, span, panel + part);
        }
}

// The largest magnitude of a row of a 4-bit weight.
float largest(const PackedWeight& weight, int row) {
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
void unpack_int8(const PackedWeight& weight, int n, uint32_t* panel, float* scales) {
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
            store_outputs(values, start, span, panel + part);
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
class Panel {
 public:
    explicit Panel(int words)
        : count_(words), memory_(allocate<uint32_t>((size_t(words) + 2) * kPanel)) {}

    explicit operator bool() const { return bool(memory_); }

    uint32_t* words() const { return memory_.get(); }  // [words of a column][64]
    float* scales() const {                            // [64], of 8-bit weights
        return reinterpret_cast<float*>(words() + size_t(count_) * kPanel);
    }
    int32_t* base() const {  // [64], where sums of 8-bit products begin
        return reinterpret_cast<int32_t*>(words() + size_t(count_ + 1) * kPanel);
    }

    // Tokens are 128 too high, so sums are too high by 128 times an output's weights.
    void correct() const {
        const __m512i ones = _mm512_set1_epi8(1);
        for (int j = 0; j < kPanel; j += kLanes) {
            __m512i sum = _mm512_setzero_si512();
            for (int w = 0; w < count_; ++w)
                sum = Int8Product::add(sum, ones,
                                       _mm512_load_si512(words() + size_t(w) * kPanel + j));
            sum = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sum, 7));
            _mm512_store_si512(base() + j, sum);
        }
    }

 private:
    int count_;
    Buffer<uint32_t> memory_;
};

// Over all panels and tiles of tokens: fill(first output, panel), then tile(first output, first
// token, panel, number of tokens). Returns whether memory ran out.
template <class Fill, class Tile>
int for_panels(int64_t tokens, int64_t outputs, int words, int threads, Fill&& fill, Tile&& tile) {
    const Blocks blocks{(outputs + kPanel - 1) / kPanel, tokens, (tokens + 16) * outputs * words};
    return for_tiles(
        blocks, kTasksPerThread, threads, [&] { return Panel(words); },
        [&](const Panel& panel, int64_t block) { fill(int(block * kPanel), panel); },
        [&](const Panel& panel, int64_t block, int64_t m, auto count) {
            tile(int(block * kPanel), m, panel, count);
        });
}

template <class Out, class Fill>
int integer_linear(const uint8_t* q, const float* steps, const float* bias, Out* out,
                   int64_t tokens, int64_t outputs, int columns, int threads, Fill&& fill) {
    const int words = columns / 4;
    const auto prepare = [&](int n, const Panel& panel) {
        fill(n, panel.words(), panel.scales());
        panel.correct();
    };
    const auto tile = [&](int n, int64_t m, const Panel& panel, auto count) {
        constexpr int R = count.value;
        __m512i sums[R][kVectors];
        for (int r = 0; r < R; ++r)
            for (int j = 0; j < kVectors; ++j)
                sums[r][j] = _mm512_load_si512(panel.base() + j * kLanes);
        multiply<R, Int8Product>(reinterpret_cast<const char*>(q + m * columns), columns,
                                 panel.words(), words, sums);
        for (int j = 0; j < kVectors; ++j) {
            const __mmask16 used = first(int(outputs) - n - j * kLanes);
            const __m512 shift = bias ? load(bias + n + j * kLanes, used) : _mm512_setzero_ps();
            const __m512 scale = _mm512_load_ps(panel.scales() + j * kLanes);
            for (int r = 0; r < R; ++r) {
                __m512 y =
                    _mm512_mul_ps(_mm512_cvtepi32_ps(sums[r][j]), _mm512_set1_ps(steps[m + r]));
                y = _mm512_mul_ps(y, scale);
                if (bias) y = _mm512_add_ps(y, shift);
                store(out + (m + r) * outputs + n + j * kLanes, y, used);
            }
        }
    };
    return for_panels(tokens, outputs, words, threads, prepare, tile);
}

// out[tokens][outputs] = x[tokens][columns] W^T + bias, where fill(first output, panel) gives 64
// outputs' weights in words.
template <class T, class Fill>
int float_linear(const T* x, const T* bias, T* out, int64_t tokens, int64_t outputs, int columns,
                 int threads, Fill&& fill) {
    using Product = std::conditional_t<std::is_same_v<T, float>, FloatProduct, Bf16Product>;
    const int words = columns * int(sizeof(T)) / int(sizeof(uint32_t));
    const auto prepare = [&](int n, const Panel& panel) { fill(n, panel.words()); };
    const auto tile = [&](int n, int64_t m, const Panel& panel, auto count) {
        constexpr int R = count.value;
        __m512 sums[R][kVectors];
        for (int j = 0; j < kVectors; ++j) {
            const __m512 shift =
                bias ? load(bias + n + j * kLanes, first(int(outputs) - n - j * kLanes))
                     : _mm512_setzero_ps();
            for (int r = 0; r < R; ++r) sums[r][j] = shift;
        }
        multiply<R, Product>(reinterpret_cast<const char*>(x + m * columns), columns * sizeof(T),
                             panel.words(), words, sums);
        for (int r = 0; r < R; ++r)
            for (int j = 0; j < kVectors; ++j)
                store(out + (m + r) * outputs + n + j * kLanes, sums[r][j],
                      first(int(outputs) - n - j * kLanes));
    };
    return for_panels(tokens, outputs, words, threads, prepare, tile);
}

// Calls f with `out` as the type that it has: float if `wide`, else bfloat16.
template <class F>
int with_output(void* out, int wide, F&& f) {
    return wide ? f(static_cast<float*>(out)) : f(static_cast<bf16*>(out));
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
    const PackedWeight weight{words, scales, zeros, int(rows), int(groups), int(lanes)};
    const auto fill = [&](int n, uint32_t* panel) { unpack_bf16(weight, n, panel); };
    return float_linear(x, bias, out, tokens, rows, weight.columns(), threads, fill);
}

// The same for a weight [outputs][columns], all float if `wide`, else bfloat16.
QVGGT_EXPORT int qvggt_dense_linear(const void* x, const void* weight, const void* bias, void* out,
                                    int wide, int64_t tokens, int64_t outputs, int64_t columns,
                                    int threads) {
    using namespace qvggt;
    return with_output(out, wide, [&](auto* to) {
        using T = std::remove_pointer_t<decltype(to)>;
        const auto fill = [&](int n, uint32_t* panel) {
            pack(static_cast<const T*>(weight), int(outputs), int(columns), n, panel);
        };
        return float_linear(static_cast<const T*>(x), static_cast<const T*>(bias), to, tokens,
                            outputs, int(columns), threads, fill);
    });
}

// out[tokens][rows] (float if `wide`, else bfloat16) = steps (q - 128) W8^T + bias, W8 being the
// 4-bit weight requantized to one scale per row.
QVGGT_EXPORT int qvggt_int4_linear_int8(const uint8_t* q, const float* steps, const uint16_t* words,
                                        const uint16_t* scales, const uint8_t* zeros,
                                        const float* bias, void* out, int wide, int64_t tokens,
                                        int64_t rows, int64_t groups, int64_t lanes, int threads) {
    using namespace qvggt;
    const PackedWeight weight{words, scales, zeros, int(rows), int(groups), int(lanes)};
    const auto fill = [&](int n, uint32_t* panel, float* kept) {
        unpack_int8(weight, n, panel, kept);
    };
    return with_output(out, wide, [&](auto* to) {
        return integer_linear(q, steps, bias, to, tokens, rows, weight.columns(), threads, fill);
    });
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
    return with_output(out, wide, [&](auto* to) {
        return integer_linear(q, steps, bias, to, tokens, outputs, int(columns), threads, fill);
    });
}

}  // extern "C"
