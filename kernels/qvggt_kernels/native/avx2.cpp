// Linears that multiply integers, for processors with AVX2 that have no dot products of 8-bit
// integers.
//
// There, one instruction multiplies 32 pairs of 8-bit numbers and adds neighbours, in 16 bits. Sums
// of a few such products fit into 16 bits if weights have four: 255 x 8 x 2 x 8 < 2^15. So 4-bit
// weights stay what they are, with their scale per group, where others requantize them to eight
// bits and a scale per row; weights of eight bits are multiplied as two halves of four.

#include "integers.h"

namespace qvggt {
namespace {

// Products of weights that four bits hold, `kRun` words at a time in 16 bits: 8 for weights from -8
// to 8, 4 for those from -15 to 15. Segments are multiples of 8 words.
template <int kRun>
struct NarrowProduct {
    static constexpr int kCopies = 1;
    static void prepare(uint32_t*, int) {}

    static QVGGT_INLINE void add(__m256i& sum, __m256i token, __m256i weight) {
        // Of intrinsics, GCC makes all products before it adds any, and keeps them in memory.
        __m256i product;
        asm("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0"
            : "+x"(sum), "=&x"(product)
            : "x"(token), "x"(weight));
    }

    template <int R>
    static QVGGT_INLINE void multiply(const uint8_t* rows, size_t stride, const uint32_t* panel,
                                      int words, __m256i (&sums)[R][kVectors]) {
        const __m256i ones = _mm256_set1_epi16(1);
        for (int w = 0; w < words; w += kRun, panel += kRun * kOutputs, rows += kRun * 4) {
            __m256i parts[R][kVectors];
            unrolled<kRun>([&](auto i) QVGGT_INLINE {
                __m256i weight[kVectors];
                unrolled<kVectors>([&](auto j) QVGGT_INLINE {
                    weight[j] = load_integers(panel + i * kOutputs + j * kLanes);
                });
                unrolled<R>([&](auto r) QVGGT_INLINE {
                    int32_t word;
                    __builtin_memcpy(&word, rows + r * stride + i * 4, 4);
                    const __m256i token = _mm256_set1_epi32(word);
                    unrolled<kVectors>([&](auto j) QVGGT_INLINE {
                        if constexpr (i == 0)
                            parts[r][j] = _mm256_maddubs_epi16(token, weight[j]);
                        else
                            add(parts[r][j], token, weight[j]);
                    });
                });
            });
            unrolled<R>([&](auto r) QVGGT_INLINE {
                unrolled<kVectors>([&](auto j) QVGGT_INLINE {
                    sums[r][j] = _mm256_add_epi32(sums[r][j], _mm256_madd_epi16(parts[r][j], ones));
                });
            });
        }
    }
};

// Products of any 8-bit weights: of 16 times their high half, from -8 to 7, and their low half,
// from 0 to 15.
struct WideProduct {
    static constexpr int kCopies = 2;

    static void prepare(uint32_t* words, int count) {
        const __m256i mask = _mm256_set1_epi8(15), sign = _mm256_set1_epi8(8);
        for (int i = 0; i < count * kOutputs; i += kLanes) {
            const __m256i weight = load_integers(words + i);
            const __m256i high = _mm256_and_si256(_mm256_srli_epi16(weight, 4), mask);
            store_integers(words + i, _mm256_sub_epi8(_mm256_xor_si256(high, sign), sign));
            store_integers(words + size_t(count) * kOutputs + i, _mm256_and_si256(weight, mask));
        }
    }

    template <int R>
    static QVGGT_INLINE void multiply(const uint8_t* rows, size_t stride, const uint32_t* panel,
                                      int words, __m256i (&sums)[R][kVectors]) {
        __m256i high[R][kVectors] = {};
        NarrowProduct<8>::multiply<R>(rows, stride, panel, words, high);
        unrolled<R>([&](auto r) QVGGT_INLINE {
            unrolled<kVectors>([&](auto j) QVGGT_INLINE {
                sums[r][j] = _mm256_add_epi32(sums[r][j], _mm256_slli_epi32(high[r][j], 4));
            });
        });
        NarrowProduct<4>::multiply<R>(rows, stride, panel + size_t(words) * kOutputs, words, sums);
    }
};

// Rows [n, n+16) of a 4-bit weight as they are, a segment per group.
void unpack(const PackedWeight& weight, int n, const Panel& panel, int part) {
    const Table numbers = _mm_setr_epi8(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    for (int g = 0; g < weight.groups; ++g) {
        const Segment to = panel.segment(part, g);
        unpack_group(weight, n, g, to.words, [&](int i, size_t at) {
            to.scales[i] = widen(weight.scales[at]);
            to.offsets[i] = weight.zeros ? kZero - weight.zeros[at] : 0;
            return numbers;
        });
    }
}

// Whether all of `count` numbers are from -8 to 7.
bool fit_four_bits(const int8_t* numbers, int64_t count) {
    const __m256i shift = _mm256_set1_epi8(8), outside = _mm256_set1_epi8(-16);
    __m256i found = _mm256_setzero_si256();
    int64_t i = 0;
    for (; i + 32 <= count; i += 32) {
        const __m256i moved = _mm256_add_epi8(load_integers(numbers + i), shift);
        found = _mm256_or_si256(found, _mm256_and_si256(moved, outside));
    }
    bool fits = _mm256_testz_si256(found, found);
    for (; i < count; ++i) fits = fits && -8 <= numbers[i] && numbers[i] <= 7;
    return fits;
}

}  // namespace
}  // namespace qvggt

// The functions of gemm.cpp with the same arguments.
extern "C" {

// out = steps (q - 128) W^T + bias, W being the 4-bit weight itself.
QVGGT_EXPORT int qvggt_int4_linear_int8_avx2(const uint8_t* q, const float* steps,
                                             const uint16_t* words, const uint16_t* scales,
                                             const uint8_t* zeros, const float* bias, void* out,
                                             int wide, int64_t tokens, int64_t rows, int64_t groups,
                                             int64_t lanes, int threads) {
    using namespace qvggt;
    const PackedWeight packed{words, scales, zeros, int(rows), int(groups), int(lanes)};
    const auto fill = [&](int n, const Panel& panel, int part) { unpack(packed, n, panel, part); };
    const Weight<decltype(fill)> weight{rows, int(groups), zeros != nullptr, bias, fill};
    return multiply<NarrowProduct<8>>(Tokens{q, steps, tokens, packed.columns()}, weight,
                                      Output{out, rows, wide != 0}, threads);
}

QVGGT_EXPORT int qvggt_integer_linear_avx2(const uint8_t* q, const float* steps,
                                           const int8_t* weight, const float* scales,
                                           const float* bias, void* out, int wide, int64_t tokens,
                                           int64_t outputs, int64_t columns, int threads) {
    using namespace qvggt;
    const Tokens given{q, steps, tokens, int(columns)};
    auto* run = fit_four_bits(weight, outputs * columns) ? multiply_8_bits<NarrowProduct<8>>
                                                         : multiply_8_bits<WideProduct>;
    return run(given, weight, scales, bias, Output{out, outputs, wide != 0}, threads);
}

}  // extern "C"
