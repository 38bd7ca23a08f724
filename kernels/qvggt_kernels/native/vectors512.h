// Vectors of 512 bits for float32 with AVX-512; see short_vectors.h.
#pragma once

#include <immintrin.h>

#include "packed_weight.h"

namespace qvggt {
namespace {

using Floats = __m512;
using Integers = __m512i;

constexpr int kLanes = 16;  // 32-bit numbers in a vector

inline Floats all(float value) {
    return _mm512_set1_ps(value);
}

inline Floats load(const float* from) {
    return _mm512_loadu_ps(from);
}

inline Floats load(const bf16* from) {
    const __m256i values = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
}

inline void store(float* to, Floats values) {
    _mm512_storeu_ps(to, values);
}

// Rounds to nearest, ties to even; numbers too small for a normal float become zero.
inline void store(bf16* to, Floats values) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values)));
}

inline Floats multiply_add(Floats a, Floats b, Floats c) {
    return _mm512_fmadd_ps(a, b, c);
}

// The second where one of them is not a number.
inline Floats maximum(Floats a, Floats b) {
    return _mm512_max_ps(a, b);
}

// values times 2 to the power of the lowest bits of `exponents`.
inline Floats scale_by_power(Floats values, Floats exponents) {
    const __m512i power = _mm512_slli_epi32(_mm512_castps_si512(exponents), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(values), power));
}

inline float first(Floats values) {
    return _mm512_cvtss_f32(values);
}

inline float largest(Floats values) {
    return _mm512_reduce_max_ps(values);
}

inline float total(Floats values) {
    return _mm512_reduce_add_ps(values);
}

// Adds to sums[R][N] the products of R rows of `count` numbers with a panel [count][16 N].
template <int R, int N>
QVGGT_INLINE inline void multiply(const float* rows, size_t stride, const float* panel, int count,
                                  Floats (&sums)[R][N]) {
    for (int i = 0; i < count; ++i, panel += N * kLanes, ++rows) {
        Floats weight[N];
        unrolled<N>([&](auto j) QVGGT_INLINE { weight[j] = _mm512_load_ps(panel + j * kLanes); });
        unrolled<R>([&](auto r) QVGGT_INLINE {
            const Floats factor = all(rows[r * stride]);
            unrolled<N>([&](auto j) QVGGT_INLINE {
                sums[r][j] = multiply_add(factor, weight[j], sums[r][j]);
            });
        });
    }
}

}  // namespace
}  // namespace qvggt
