// The values of a group's 4-bit numbers, looked up with vectors of 512 bits.
#pragma once

#include "packed_weight.h"
#include "vectors.h"

namespace qvggt {

// The 16 values of a group; exact, for four bits times eight fit into a float.
inline __m512 levels(const PackedWeight& weight, size_t group) {
    const __m512i number = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const int zero = weight.zeros ? weight.zeros[group] : kZero;
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(number, _mm512_set1_epi32(zero))),
                         _mm512_set1_ps(widen(weight.scales[group])));
}

// Nearest bfloat16, ties to even, small numbers too.
inline __m256i round_bf16(__m512 values) {
    const __m512i bits = _mm512_castps_si512(values);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16));
}

// 16-bit entries of a table by the low 4 bits of each number, planes in turn: `lanes` numbers per
// plane. The table is repeated, so bits above the lowest four choose nothing.
inline void look_up(const uint16_t* words, int lanes, __m512i table, uint16_t* out) {
    const __m256i half = _mm512_castsi512_si256(table);
    switch (lanes) {
        case 32: {
            const __m512i w = _mm512_loadu_si512(words);
            _mm512_storeu_si512(out, _mm512_permutexvar_epi16(w, table));
            _mm512_storeu_si512(out + 32, _mm512_permutexvar_epi16(_mm512_srli_epi16(w, 4), table));
            _mm512_storeu_si512(out + 64, _mm512_permutexvar_epi16(_mm512_srli_epi16(w, 8), table));
            _mm512_storeu_si512(out + 96,
                                _mm512_permutexvar_epi16(_mm512_srli_epi16(w, 12), table));
            break;
        }
        case 16: {
            const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
            for (int plane = 0; plane < kPlanes; ++plane)
                _mm256_storeu_si256(
                    reinterpret_cast<__m256i*>(out + 16 * plane),
                    _mm256_permutexvar_epi16(_mm256_srli_epi16(w, 4 * plane), half));
            break;
        }
        default: {
            const __m128i w = _mm_loadu_si128(reinterpret_cast<const __m128i*>(words));
            for (int plane = 0; plane < kPlanes; ++plane)
                _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 8 * plane),
                                 _mm256_castsi256_si128(_mm256_permutexvar_epi16(
                                     _mm256_castsi128_si256(_mm_srli_epi16(w, 4 * plane)), half)));
        }
    }
}

// A table of 16 entries, twice.
inline __m512i repeat(__m256i table) {
    return _mm512_broadcast_i64x4(table);
}

}  // namespace qvggt
