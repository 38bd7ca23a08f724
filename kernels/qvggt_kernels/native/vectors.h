// Vectors of 512 bits: what the kernels of this directory share.
//
// Everything that crosses a library boundary is in its .cpp file; nothing here runs unless the
// loader has found AVX-512 with BF16 and VNNI on this processor.
#pragma once

#include <immintrin.h>

#include "common.h"

namespace qvggt {

constexpr int kLanes = 16;  // 32-bit numbers in a vector
constexpr int kPanel = 64;  // outputs that a product computes at once: four vectors
constexpr int kVectors = kPanel / kLanes;
static_assert(kTileRows == 6, "6 x 4 sums, 4 weights and 1 token: 29 of 32 registers");

inline __m512 widen(__m256i values) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
}

inline __m512 load(const bf16* from) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

inline __m512 load(const float* from) {
    return _mm512_loadu_ps(from);
}

inline __m512 load(const bf16* from, __mmask16 mask) {
    return widen(_mm256_maskz_loadu_epi16(mask, from));
}

inline __m512 load(const float* from, __mmask16 mask) {
    return _mm512_maskz_loadu_ps(mask, from);
}

// Rounds to nearest, ties to even; numbers too small for a normal float become zero.
inline __m256i narrow(__m512 values) {
    return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values));
}

inline void store(bf16* to, __m512 values, __mmask16 mask) {
    _mm256_mask_storeu_epi16(to, mask, narrow(values));
}

inline void store(float* to, __m512 values, __mmask16 mask) {
    _mm512_mask_storeu_ps(to, mask, values);
}

inline __mmask16 first(int count) {
    return count >= kLanes ? 0xFFFF : count <= 0 ? 0 : __mmask16((1u << count) - 1);
}

// 16 rows of 16 32-bit numbers become 16 columns.
inline void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        const __m512i low = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        const __m512i high = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xDD);
        const __m512i low2 = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        const __m512i high2 = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xDD);
        t[i] = _mm512_shuffle_i32x4(low, low2, 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(high, high2, 0x88);
        t[i + 8] = _mm512_shuffle_i32x4(low, low2, 0xDD);
        t[i + 12] = _mm512_shuffle_i32x4(high, high2, 0xDD);
    }
    for (int i = 0; i < 16; ++i) r[i] = t[i];
}

// Sums of products, a word of 32 bits at a time: a float, a pair of bfloat16 or four 8-bit
// integers.
struct FloatProduct {
    using Sum = __m512;
    static QVGGT_INLINE Sum add(Sum sum, __m512i token, __m512i weight) {
        return _mm512_fmadd_ps(_mm512_castsi512_ps(token), _mm512_castsi512_ps(weight), sum);
    }
};

struct Bf16Product {
    using Sum = __m512;
    static QVGGT_INLINE Sum add(Sum sum, __m512i token, __m512i weight) {
        return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(token),
                                reinterpret_cast<__m512bh>(weight));
    }
};

struct Int8Product {
    using Sum = __m512i;
    // Tokens are unsigned, weights signed.
    static QVGGT_INLINE Sum add(Sum sum, __m512i token, __m512i weight) {
        // For the intrinsic, GCC copies every sum before and after the instruction.
        asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(token), "v"(weight));
        return sum;
    }
};

// Adds to sums[R][4] the products of R rows of `words` words each with a panel.
//
// rows: of `stride` bytes, at any alignment. panel: [words][64], word w of output n at [w][n].
template <int R, class Product>
QVGGT_INLINE inline void multiply(const char* rows, size_t stride, const uint32_t* panel, int words,
                                  typename Product::Sum (&sums)[R][kVectors]) {
    for (int w = 0; w < words; ++w, panel += kPanel, rows += 4) {
        __m512i weight[kVectors];
        unrolled<kVectors>([&](auto j)
                               QVGGT_INLINE { weight[j] = _mm512_load_si512(panel + j * kLanes); });
        unrolled<R>([&](auto r) QVGGT_INLINE {
            int32_t word;
            __builtin_memcpy(&word, rows + r * stride, 4);
            const __m512i token = _mm512_set1_epi32(word);
            unrolled<kVectors>([&](auto j) QVGGT_INLINE {
                sums[r][j] = Product::add(sums[r][j], token, weight[j]);
            });
        });
    }
}

}  // namespace qvggt
