// Vectors of 256 bits, for AVX2 with AVX-VNNI or without; see short_vectors.h.
//
// Arithmetic of floats is written with operators: compilers have them for vectors.
#pragma once

#include <immintrin.h>

#include "packed_weight.h"

namespace qvggt {
namespace {

using Floats = __m256;
using Integers = __m256i;
using Table = __m128i;  // 16 entries of 8 bits

constexpr int kLanes = 8;  // 32-bit numbers in a vector
constexpr int kRegisters = 16;
constexpr int kTokenZero = 128;  // for instructions that multiply unsigned by signed numbers

inline Floats all(float value) {
    return _mm256_set1_ps(value);
}

inline Integers all(int32_t value) {
    return _mm256_set1_epi32(value);
}

inline Integers load_integers(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}

inline void store_integers(void* to, Integers values) {
    _mm256_storeu_si256(static_cast<__m256i*>(to), values);
}

inline Floats load(const float* from) {
    return _mm256_loadu_ps(from);
}

inline Floats load(const bf16* from) {
    const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(values), 16));
}

inline void store(float* to, Floats values) {
    _mm256_storeu_ps(to, values);
}

// Rounds to nearest, ties to even; what is not a number stays that.
inline void store(bf16* to, Floats values) {
    const __m256i bits = _mm256_castps_si256(values);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    const __m256 nan = _mm256_cmp_ps(values, values, _CMP_UNORD_Q);
    up = _mm256_blendv_epi8(up, _mm256_set1_epi32(0x7FC00000), _mm256_castps_si256(nan));
    const __m256i high = _mm256_srli_epi32(up, 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
}

inline Floats multiply_add(Floats a, Floats b, Floats c) {
    return _mm256_fmadd_ps(a, b, c);
}

// The second where one of them is not a number.
inline Floats maximum(Floats a, Floats b) {
    return _mm256_max_ps(a, b);
}

inline Floats minimum(Floats a, Floats b) {
    return _mm256_min_ps(a, b);
}

inline Integers add(Integers a, Integers b) {
    return _mm256_add_epi32(a, b);
}

inline Integers multiply(Integers a, Integers b) {
    return _mm256_mullo_epi32(a, b);
}

inline Floats to_floats(Integers values) {
    return _mm256_cvtepi32_ps(values);
}

// Nearest whole numbers, ties to even.
inline Integers nearest(Floats values) {
    return _mm256_cvtps_epi32(values);
}

// values times 2 to the power of the lowest bits of `exponents`.
inline Floats scale_by_power(Floats values, Floats exponents) {
    const __m256i power = _mm256_slli_epi32(_mm256_castps_si256(exponents), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(values), power));
}

inline float first(Floats values) {
    return _mm256_cvtss_f32(values);
}

inline float largest(Floats values) {
    __m128 most = _mm_max_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
    most = _mm_max_ps(most, _mm_movehl_ps(most, most));
    return _mm_cvtss_f32(_mm_max_ss(most, _mm_shuffle_ps(most, most, 1)));
}

inline float total(Floats values) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_shuffle_ps(sum, sum, 1)));
}

// The larger magnitude, or no number where one of them is none: their bits have that order.
inline Floats larger_magnitude(Floats most, Floats values) {
    const __m256i bits = _mm256_and_si256(_mm256_castps_si256(values), all(0x7FFFFFFF));
    return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(most), bits));
}

// The largest of magnitudes, or no number if one of them is none.
inline float largest_magnitude(Floats magnitudes) {
    const __m256i bits = _mm256_castps_si256(magnitudes);
    __m128i most = _mm_max_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
    most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0x4E));
    most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0xB1));
    return _mm_cvtss_f32(_mm_castsi128_ps(most));
}

// Words of 16 bits as vectors of 32.
inline Integers load_words(const uint16_t* from) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

// The 4-bit number of each word that begins at bit kShift.
template <int kShift>
inline Integers number(Integers words) {
    return _mm256_and_si256(_mm256_srli_epi32(words, kShift), _mm256_set1_epi32(15));
}

// Numbers from -128 to 127 as 8-bit tokens.
inline void store_tokens(uint8_t* to, const Integers (&whole)[4]) {
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(whole[0], whole[1]),
                                             _mm256_packs_epi32(whole[2], whole[3]));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i ordered = _mm256_permutevar8x32_epi32(bytes, order);
    store_integers(to, _mm256_xor_si256(ordered, _mm256_set1_epi8(-128)));
}

// The sum of `count` tokens as they are stored; `count` is a multiple of 32.
inline int32_t sum_of_tokens(const uint8_t* q, int count) {
    __m256i sums = _mm256_setzero_si256();
    for (int k = 0; k < count; k += 32)
        sums =
            _mm256_add_epi64(sums, _mm256_sad_epu8(load_integers(q + k), _mm256_setzero_si256()));
    const __m128i two =
        _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    return _mm_cvtsi128_si32(_mm_add_epi64(two, _mm_unpackhi_epi64(two, two)));
}

// The sum of the four 8-bit weights in each lane.
inline Integers sum_of_weights(Integers weights) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), weights);
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

inline Table load_table(const int8_t* entries) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(entries));
}

// 16 numbers from -128 to 127 as a table.
inline Table to_table(const Integers (&whole)[2]) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(whole[0], whole[1]), 0xD8);
    return _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

// 8-bit entries of a table by 4-bit numbers, planes in turn: `lanes` numbers per plane.
inline void look_up(const uint16_t* words, int lanes, Table entries, int8_t* out) {
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

// The smallest and the largest of a group's 4-bit numbers.
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

// Four rows of four words as columns, `stride` words apart.
inline void transpose(const void* const (&rows)[4], uint32_t* to, size_t stride) {
    __m128 r[4];
    for (int i = 0; i < 4; ++i) r[i] = _mm_loadu_ps(static_cast<const float*>(rows[i]));
    _MM_TRANSPOSE4_PS(r[0], r[1], r[2], r[3]);
    for (int i = 0; i < 4; ++i) _mm_storeu_ps(reinterpret_cast<float*>(to + i * stride), r[i]);
}

// Four rows of 16 8-bit numbers as 16 words.
inline void interleave(const int8_t* const (&rows)[4], uint32_t* to) {
    __m128i r[4];
    for (int i = 0; i < 4; ++i) r[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i]));
    const __m128i a = _mm_unpacklo_epi8(r[0], r[1]), b = _mm_unpackhi_epi8(r[0], r[1]);
    const __m128i c = _mm_unpacklo_epi8(r[2], r[3]), d = _mm_unpackhi_epi8(r[2], r[3]);
    __m128i* out = reinterpret_cast<__m128i*>(to);
    _mm_storeu_si128(out, _mm_unpacklo_epi16(a, c));
    _mm_storeu_si128(out + 1, _mm_unpackhi_epi16(a, c));
    _mm_storeu_si128(out + 2, _mm_unpacklo_epi16(b, d));
    _mm_storeu_si128(out + 3, _mm_unpackhi_epi16(b, d));
}

// Adds to sums[R][N] the products of R rows of `count` numbers, a multiple of four, with a panel
// [count][8 N].
template <int R, int N>
QVGGT_INLINE inline void multiply(const float* rows, size_t stride, const float* panel, int count,
                                  Floats (&sums)[R][N]) {
    for (int i = 0; i < count; ++i, panel += N * kLanes, ++rows) {
        Floats weight[N];
        unrolled<N>([&](auto j) QVGGT_INLINE { weight[j] = _mm256_load_ps(panel + j * kLanes); });
        unrolled<R>([&](auto r) QVGGT_INLINE {
            const Floats factor = _mm256_broadcast_ss(rows + r * stride);
            unrolled<N>([&](auto j) QVGGT_INLINE {
                sums[r][j] = multiply_add(factor, weight[j], sums[r][j]);
            });
        });
    }
}

}  // namespace
}  // namespace qvggt
