// Linears that multiply 8-bit integers, for processors with AVX2 and AVX-VNNI but without AVX-512:
// the arithmetic of gemm.cpp, bit for bit. Tokens are quantized in avx2.cpp.

#include <cmath>

#include "integers256.h"

namespace qvggt {
namespace {

// Products of any 8-bit weights, four a word in one instruction.
struct VnniProduct {
    static constexpr int kCopies = 1;
    static void prepare(uint32_t*, int) {}

    static QVGGT_INLINE __m256i add(__m256i sum, __m256i token, __m256i weight) {
        // For the intrinsic, GCC copies every sum before and after the instruction.
        asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(token), "x"(weight));
        return sum;
    }

    template <int R>
    static QVGGT_INLINE void multiply(const uint8_t* rows, size_t stride, const uint32_t* panel,
                                      int words, __m256i (&sums)[R][kVectors]) {
        for (int w = 0; w < words; ++w, panel += kOutputs, rows += 4) {
            __m256i weight[kVectors];
            unrolled<kVectors>([&](auto j)
                                   QVGGT_INLINE { weight[j] = load_integers(panel + j * kLanes); });
            unrolled<R>([&](auto r) QVGGT_INLINE {
                int32_t word;
                __builtin_memcpy(&word, rows + r * stride, 4);
                const __m256i token = _mm256_set1_epi32(word);
                unrolled<kVectors>(
                    [&](auto j) QVGGT_INLINE { sums[r][j] = add(sums[r][j], token, weight[j]); });
            });
        }
    }
};

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

// Rows [n, n+16) of a 4-bit weight in 8-bit numbers, one scale per row.
void requantize(const PackedWeight& weight, int n, const Segment& to) {
    for (int i = 0; i < kOutputs; ++i) {
        const float step = largest(weight, std::min(n + i, weight.rows - 1)) / 127.0f;
        to.scales[i] = step == 0 ? 1 : step;
    }
    for (int g = 0; g < weight.groups; ++g)
        unpack_group(weight, n, g, to.words + size_t(g) * weight.lanes * kOutputs,
                     [&](int i, size_t at) { return table(weight, at, to.scales[i]); });
}

}  // namespace
}  // namespace qvggt

// The functions of gemm.cpp with the same arguments.
extern "C" {

QVGGT_EXPORT int qvggt_int4_linear_int8_avx_vnni(const uint8_t* q, const float* steps,
                                                 const uint16_t* words, const uint16_t* scales,
                                                 const uint8_t* zeros, const float* bias, void* out,
                                                 int wide, int64_t tokens, int64_t rows,
                                                 int64_t groups, int64_t lanes, int threads) {
    using namespace qvggt;
    const PackedWeight weight{words, scales, zeros, int(rows), int(groups), int(lanes)};
    const auto fill = [&](int n, const Panel& panel, int part) {
        requantize(weight, n, panel.segment(part, 0));
    };
    return multiply<VnniProduct>(Tokens{q, steps, tokens, weight.columns()},
                                 Weight<decltype(fill)>{rows, 1, false, bias, fill},
                                 Output{out, rows, wide != 0}, threads);
}

QVGGT_EXPORT int qvggt_integer_linear_avx_vnni(const uint8_t* q, const float* steps,
                                               const int8_t* weight, const float* scales,
                                               const float* bias, void* out, int wide,
                                               int64_t tokens, int64_t outputs, int64_t columns,
                                               int threads) {
    using namespace qvggt;
    return multiply_8_bits<VnniProduct>(Tokens{q, steps, tokens, int(columns)}, weight, scales,
                                        bias, Output{out, outputs, wide != 0}, threads);
}

}  // extern "C"
