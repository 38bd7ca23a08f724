// Products of 8-bit integers with vectors of 256 bits, for processors with AVX2 and AVX-VNNI but
// without AVX-512: the arithmetic of gemm.cpp and tokens.cpp, bit for bit.

#include <immintrin.h>

#include <algorithm>
#include <cmath>

#include "packed_weight.h"
#include "tiles.h"

namespace qvggt {
namespace {

constexpr int kLanes = 8;     // 32-bit numbers in a vector
constexpr int kOutputs = 16;  // of a product: 6 x 2 sums, 2 weights and 1 token: 15 registers
constexpr int kParts = 4;     // products with a tile of tokens while it is in the first-level cache
constexpr int kVectors = kOutputs / kLanes;
constexpr int kTasksPerThread = 4;

inline __m256 load(const float* from) {
    return _mm256_loadu_ps(from);
}

inline __m256 load(const bf16* from) {
    const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(values), 16));
}

inline void store(float* to, __m256 values) {
    _mm256_storeu_ps(to, values);
}

// Rounds to nearest, ties to even; what is not a number stays that.
inline void store(bf16* to, __m256 values) {
    const __m256i bits = _mm256_castps_si256(values);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    const __m256 nan = _mm256_cmp_ps(values, values, _CMP_UNORD_Q);
    up = _mm256_blendv_epi8(up, _mm256_set1_epi32(0x7FC00000), _mm256_castps_si256(nan));
    const __m256i high = _mm256_srli_epi32(up, 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
}

template <class T>
inline void store(T* to, __m256 values, int count) {
    if (count >= kLanes) return store(to, values);
    T all[kLanes];
    store(all, values);
    for (int i = 0; i < count; ++i) to[i] = all[i];
}

inline float largest(__m256 values) {
    __m128 most = _mm_max_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
    most = _mm_max_ps(most, _mm_movehl_ps(most, most));
    return _mm_cvtss_f32(_mm_max_ss(most, _mm_shuffle_ps(most, most, 1)));
}

inline __m256 magnitude(__m256 values) {
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), values);
}

// Rows of tokens to 8-bit numbers, 128 too high, with a step each; see tokens.cpp.
template <class In>
void quantize(const In* x, uint8_t* q, float* steps, int64_t tokens, int columns, float levels,
              float clip, int threads) {
    const __m256 bound = _mm256_set1_ps(levels), least = _mm256_set1_ps(-levels);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
#pragma omp parallel for num_threads(useful(threads, tokens * columns * 8)) schedule(static)
    for (int64_t m = 0; m < tokens; ++m) {
        const In* row = x + m * columns;
        __m256 most = _mm256_setzero_ps();
        for (int k = 0; k < columns; k += kLanes)
            most = _mm256_max_ps(most, magnitude(load(row + k)));
        const float step = largest(most) * clip / levels;
        const __m256 divisor = _mm256_set1_ps(step == 0 ? 1 : step);
        steps[m] = step;
        for (int k = 0; k < columns; k += 4 * kLanes) {
            __m256i whole[4];
            for (int i = 0; i < 4; ++i) {
                __m256 y = _mm256_div_ps(load(row + k + i * kLanes), divisor);
                y = _mm256_max_ps(_mm256_min_ps(y, bound), least);
                whole[i] = _mm256_cvtps_epi32(y);
            }
            const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(whole[0], whole[1]),
                                                     _mm256_packs_epi32(whole[2], whole[3]));
            const __m256i ordered = _mm256_permutevar8x32_epi32(bytes, order);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + m * columns + k),
                                _mm256_xor_si256(ordered, _mm256_set1_epi8(-128)));
        }
    }
}

// The largest number and the smallest of a group's 4-bit ones.
inline void range(const uint16_t* words, int lanes, int& lowest, int& highest) {
    const __m128i mask = _mm_set1_epi16(15);
    __m128i low = mask, high = _mm_setzero_si128();
    for (int j = 0; j < lanes; j += 8) {
        const __m128i w = _mm_loadu_si128(reinterpret_cast<const __m128i*>(words + j));
        for (int plane = 0; plane < kPlanes; ++plane) {
            const __m128i number = _mm_and_si128(_mm_srli_epi16(w, 4 * plane), mask);
            low = _mm_min_epu16(low, number);
            high = _mm_max_epu16(high, number);
        }
    }
    lowest = _mm_extract_epi16(_mm_minpos_epu16(low), 0);
    highest = 15 - _mm_extract_epi16(_mm_minpos_epu16(_mm_sub_epi16(mask, high)), 0);
}

inline int zero_of(const PackedWeight& weight, size_t group) {
    return weight.zeros ? weight.zeros[group] : kZero;
}

float largest(const PackedWeight& weight, int row) {
    float most = 0;
    for (int g = 0; g < weight.groups; ++g) {
        const size_t group = size_t(row) * weight.groups + g;
        int lowest, highest;
        range(weight.words + group * weight.lanes, weight.lanes, lowest, highest);
        const int zero = zero_of(weight, group);
        const int steps = std::max(std::abs(highest - zero), std::abs(lowest - zero));
        most = std::max(most, float(steps) * std::fabs(widen(weight.scales[group])));
    }
    return most;
}

// A group's 16 values in units of `step`, rounded to whole numbers.
inline __m128i table(const PackedWeight& weight, size_t group, float step) {
    const __m256i number = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256 scale = _mm256_set1_ps(widen(weight.scales[group]));
    __m256i whole[2];
    for (int i = 0; i < 2; ++i) {
        const __m256i steps =
            _mm256_sub_epi32(number, _mm256_set1_epi32(zero_of(weight, group) - 8 * i));
        const __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(steps), scale);
        whole[i] = _mm256_cvtps_epi32(_mm256_div_ps(value, _mm256_set1_ps(step)));
    }
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(whole[0], whole[1]), 0xD8);
    return _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

// 8-bit entries of a table by 4-bit numbers, planes in turn: `lanes` numbers per plane.
inline void look_up(const uint16_t* words, int lanes, __m128i entries, int8_t* out) {
    const __m128i mask = _mm_set1_epi16(15);
    for (int j = 0; j < lanes; j += 8) {
        const __m128i w = _mm_loadu_si128(reinterpret_cast<const __m128i*>(words + j));
        for (int plane = 0; plane < kPlanes; ++plane) {
            const __m128i number = _mm_and_si128(_mm_srli_epi16(w, 4 * plane), mask);
            const __m128i bytes = _mm_shuffle_epi8(entries, _mm_packus_epi16(number, number));
            _mm_storel_epi64(reinterpret_cast<__m128i*>(out + plane * lanes + j), bytes);
        }
    }
}

// Four rows of four words as four columns of a panel.
inline void store_outputs(const int8_t* const (&rows)[4], uint32_t* panel) {
    __m128 r[4];
    for (int i = 0; i < 4; ++i) r[i] = _mm_loadu_ps(reinterpret_cast<const float*>(rows[i]));
    _MM_TRANSPOSE4_PS(r[0], r[1], r[2], r[3]);
    for (int i = 0; i < 4; ++i)
        _mm_storeu_ps(reinterpret_cast<float*>(panel + size_t(i) * kOutputs), r[i]);
}

// Rows [n, n+16) of a 4-bit weight as a panel of four 8-bit numbers [columns/4][16], one scale
// per row: scales[16].
void unpack(const PackedWeight& weight, int n, uint32_t* panel, float* scales) {
    const int group = weight.lanes * kPlanes;
    alignas(32) int8_t values[kOutputs][kMaxGroup];
    for (int i = 0; i < kOutputs; ++i) {
        const float step = largest(weight, std::min(n + i, weight.rows - 1)) / 127.0f;
        scales[i] = step == 0 ? 1 : step;
    }
    for (int g = 0; g < weight.groups; ++g) {
        for (int i = 0; i < kOutputs; ++i) {
            const size_t at = size_t(std::min(n + i, weight.rows - 1)) * weight.groups + g;
            look_up(weight.words + at * weight.lanes, weight.lanes, table(weight, at, scales[i]),
                    values[i]);
        }
        uint32_t* to = panel + size_t(g) * group / 4 * kOutputs;
        for (int c = 0; c < group; c += 16, to += 4 * kOutputs)
            for (int i = 0; i < kOutputs; i += 4)
                store_outputs(
                    {values[i] + c, values[i + 1] + c, values[i + 2] + c, values[i + 3] + c},
                    to + i);
    }
}

// Columns [n, n+16) of an 8-bit weight [columns][outputs] as a panel [columns/4][16].
void pack(const int8_t* weight, int64_t outputs, int columns, int n, uint32_t* panel) {
    const int used = int(std::min<int64_t>(kOutputs, outputs - n));
    for (int k = 0; k < columns; k += 4, panel += kOutputs) {
        alignas(16) int8_t rows[4][kOutputs] = {};
        __m128i r[4];
        for (int i = 0; i < 4; ++i) {
            const int8_t* from = weight + (k + i) * outputs + n;
            if (used < kOutputs) {
                std::copy(from, from + used, rows[i]);
                from = rows[i];
            }
            r[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
        }
        const __m128i a = _mm_unpacklo_epi8(r[0], r[1]), b = _mm_unpackhi_epi8(r[0], r[1]);
        const __m128i c = _mm_unpacklo_epi8(r[2], r[3]), d = _mm_unpackhi_epi8(r[2], r[3]);
        __m128i* to = reinterpret_cast<__m128i*>(panel);
        _mm_storeu_si128(to, _mm_unpacklo_epi16(a, c));
        _mm_storeu_si128(to + 1, _mm_unpackhi_epi16(a, c));
        _mm_storeu_si128(to + 2, _mm_unpacklo_epi16(b, d));
        _mm_storeu_si128(to + 3, _mm_unpackhi_epi16(b, d));
    }
}

// Weights of 4 x 16 outputs as a thread holds them.
struct Panel {
    Buffer<uint32_t> words;  // [4][words of a column][16]
    float scales[kParts][kOutputs];
    int32_t base[kParts][kOutputs];  // where sums begin

    explicit operator bool() const { return bool(words); }
    uint32_t* part(int p, int count) const { return words.get() + size_t(p) * count * kOutputs; }

    // Tokens are 128 too high, so sums are too high by 128 times an output's weights.
    void correct(int p, int count) {
        const uint32_t* from = part(p, count);
        for (int j = 0; j < kOutputs; j += kLanes) {
            __m256i sum = _mm256_setzero_si256();
            for (int w = 0; w < count; ++w)
                sum = _mm256_dpbusd_avx_epi32(sum, _mm256_set1_epi8(1),
                                              _mm256_loadu_si256(reinterpret_cast<const __m256i*>(
                                                  from + size_t(w) * kOutputs + j)));
            sum = _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32(sum, 7));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(base[p] + j), sum);
        }
    }
};

// Adds to a sum the products of unsigned tokens with signed weights, four a word.
QVGGT_INLINE inline __m256i add(__m256i sum, __m256i token, __m256i weight) {
    // For the intrinsic, GCC copies every sum before and after the instruction.
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(token), "x"(weight));
    return sum;
}

template <int R>
QVGGT_INLINE inline void multiply(const uint8_t* rows, size_t stride, const uint32_t* panel,
                                  int words, __m256i (&sums)[R][kVectors]) {
    for (int w = 0; w < words; ++w, panel += kOutputs, rows += 4) {
        __m256i weight[kVectors];
        unrolled<kVectors>([&](auto j) QVGGT_INLINE {
            weight[j] = _mm256_load_si256(reinterpret_cast<const __m256i*>(panel + j * kLanes));
        });
        unrolled<R>([&](auto r) QVGGT_INLINE {
            int32_t word;
            __builtin_memcpy(&word, rows + r * stride, 4);
            const __m256i token = _mm256_set1_epi32(word);
            unrolled<kVectors>(
                [&](auto j) QVGGT_INLINE { sums[r][j] = add(sums[r][j], token, weight[j]); });
        });
    }
}

// Products of R tokens with 16 outputs, scaled and stored; `outputs` of them are there.
template <int R, class Out>
void multiply_part(const uint8_t* q, const float* steps, const float* bias, Out* out,
                   int64_t stride, int outputs, int columns, const Panel& panel, int p) {
    const int words = columns / 4;
    __m256i sums[R][kVectors];
    unrolled<R>([&](auto r) QVGGT_INLINE {
        unrolled<kVectors>([&](auto j) QVGGT_INLINE {
            sums[r][j] =
                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel.base[p] + j * kLanes));
        });
    });
    multiply<R>(q, columns, panel.part(p, words), words, sums);
    unrolled<kVectors>([&](auto j) QVGGT_INLINE {
        const int used = std::clamp(outputs - j * kLanes, 0, kLanes);
        float shift[kLanes] = {};
        if (bias) std::copy(bias + j * kLanes, bias + j * kLanes + used, shift);
        unrolled<R>([&](auto r) QVGGT_INLINE {
            __m256 y = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[r][j]), _mm256_set1_ps(steps[r]));
            y = _mm256_mul_ps(y, load(panel.scales[p] + j * kLanes));
            if (bias) y = _mm256_add_ps(y, load(shift));
            store(out + r * stride + j * kLanes, y, used);
        });
    });
}

template <class Out, class Fill>
int integer_linear(const uint8_t* q, const float* steps, const float* bias, Out* out,
                   int64_t tokens, int64_t outputs, int columns, int threads, Fill&& fill) {
    constexpr int64_t kAll = kParts * kOutputs;
    const int words = columns / 4;
    const Blocks blocks{(outputs + kAll - 1) / kAll, tokens, (tokens + 16) * outputs * words * 2};
    return for_tiles(
        blocks, kTasksPerThread, threads,
        [&] { return Panel{allocate<uint32_t>(size_t(words) * kAll), {}, {}}; },
        [&](Panel& panel, int64_t block) {
            for (int p = 0; p < kParts && block * kAll + p * kOutputs < outputs; ++p) {
                fill(int(block * kAll + p * kOutputs), panel.part(p, words), panel.scales[p]);
                panel.correct(p, words);
            }
        },
        [&](const Panel& panel, int64_t block, int64_t m, auto count) {
            for (int p = 0; p < kParts; ++p) {
                const int64_t n = block * kAll + p * kOutputs;
                if (n >= outputs) break;
                multiply_part<count.value>(
                    q + m * columns, steps + m, bias ? bias + n : nullptr, out + m * outputs + n,
                    outputs, int(std::min<int64_t>(kOutputs, outputs - n)), columns, panel, p);
            }
        });
}

template <class F>
int with_output(void* out, int wide, F&& f) {
    return wide ? f(static_cast<float*>(out)) : f(static_cast<bf16*>(out));
}

}  // namespace
}  // namespace qvggt

// The functions of gemm.cpp and tokens.cpp with the same arguments.
extern "C" {

QVGGT_EXPORT void qvggt_quantize_tokens_avx_vnni(const void* x, int wide, uint8_t* q, float* steps,
                                                 int64_t tokens, int64_t columns, float levels,
                                                 float clip, int threads) {
    using namespace qvggt;
    if (wide)
        quantize(static_cast<const float*>(x), q, steps, tokens, int(columns), levels, clip,
                 threads);
    else
        quantize(static_cast<const bf16*>(x), q, steps, tokens, int(columns), levels, clip,
                 threads);
}

QVGGT_EXPORT int qvggt_int4_linear_int8_avx_vnni(const uint8_t* q, const float* steps,
                                                 const uint16_t* words, const uint16_t* scales,
                                                 const uint8_t* zeros, const float* bias, void* out,
                                                 int wide, int64_t tokens, int64_t rows,
                                                 int64_t groups, int64_t lanes, int threads) {
    using namespace qvggt;
    const PackedWeight weight{words, scales, zeros, int(rows), int(groups), int(lanes)};
    const auto fill = [&](int n, uint32_t* panel, float* kept) { unpack(weight, n, panel, kept); };
    return with_output(out, wide, [&](auto* to) {
        return integer_linear(q, steps, bias, to, tokens, rows, weight.columns(), threads, fill);
    });
}

QVGGT_EXPORT int qvggt_integer_linear_avx_vnni(const uint8_t* q, const float* steps,
                                               const int8_t* weight, const float* scales,
                                               const float* bias, void* out, int wide,
                                               int64_t tokens, int64_t outputs, int64_t columns,
                                               int threads) {
    using namespace qvggt;
    const auto fill = [&](int n, uint32_t* panel, float* kept) {
        pack(weight, outputs, int(columns), n, panel);
        std::copy(scales + n, scales + std::min<int64_t>(outputs, n + kOutputs), kept);
    };
    return with_output(out, wide, [&](auto* to) {
        return integer_linear(q, steps, bias, to, tokens, outputs, int(columns), threads, fill);
    });
}

}  // extern "C"
