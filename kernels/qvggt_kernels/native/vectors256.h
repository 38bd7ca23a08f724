// Vectors of 256 bits: what the kernels for AVX2, with AVX-VNNI or without, share.
//
// All of it is local to the file that includes it, so that code for one instruction set never
// stands in for that of another.
#pragma once

#include <immintrin.h>

#include "common.h"

namespace qvggt {
namespace {

constexpr int kLanes = 8;  // 32-bit numbers in a vector

inline __m256i load_integers(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}

inline void store_integers(void* to, __m256i values) {
    _mm256_storeu_si256(static_cast<__m256i*>(to), values);
}

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

inline float total(__m256 values) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_shuffle_ps(sum, sum, 1)));
}

inline __m256 magnitude(__m256 values) {
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), values);
}

}  // namespace
}  // namespace qvggt
