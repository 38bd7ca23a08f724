// Vectors of 128 bits, for ARM's NEON; see short_vectors.h.
//
// Arithmetic of floats is written with operators: compilers have them for vectors.
#pragma once

#include <arm_neon.h>

#include "packed_weight.h"

namespace qvggt {
namespace {

using Floats = float32x4_t;
using Integers = int32x4_t;
using Table = int8x16_t;  // 16 entries

constexpr int kLanes = 4;  // 32-bit numbers in a vector
constexpr int kRegisters = 32;
constexpr int kTokenZero = 0;  // instructions multiply signed numbers

inline Floats all(float value) {
    return vdupq_n_f32(value);
}

inline Integers all(int32_t value) {
    return vdupq_n_s32(value);
}

inline Integers load_integers(const void* from) {
    return vld1q_s32(static_cast<const int32_t*>(from));
}

inline void store_integers(void* to, Integers values) {
    vst1q_s32(static_cast<int32_t*>(to), values);
}

inline Floats load(const float* from) {
    return vld1q_f32(from);
}

inline Floats load(const bf16* from) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(from), 16));
}

inline void store(float* to, Floats values) {
    vst1q_f32(to, values);
}

// Rounds to nearest, ties to even; what is not a number stays that.
inline void store(bf16* to, Floats values) {
    const uint32x4_t bits = vreinterpretq_u32_f32(values);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t up = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7FFF)));
    const uint32x4_t number = vceqq_f32(values, values);
    vst1_u16(to, vshrn_n_u32(vbslq_u32(number, up, vdupq_n_u32(0x7FC00000)), 16));
}

inline Floats multiply_add(Floats a, Floats b, Floats c) {
    return vfmaq_f32(c, a, b);
}

// No number where one of them is none.
inline Floats maximum(Floats a, Floats b) {
    return vmaxq_f32(a, b);
}

inline Floats minimum(Floats a, Floats b) {
    return vminq_f32(a, b);
}

inline Integers add(Integers a, Integers b) {
    return vaddq_s32(a, b);
}

inline Integers multiply(Integers a, Integers b) {
    return vmulq_s32(a, b);
}

inline Floats to_floats(Integers values) {
    return vcvtq_f32_s32(values);
}

// Nearest whole numbers, ties to even.
inline Integers nearest(Floats values) {
    return vcvtnq_s32_f32(values);
}

// values times 2 to the power of the lowest bits of `exponents`.
inline Floats scale_by_power(Floats values, Floats exponents) {
    const int32x4_t power = vshlq_n_s32(vreinterpretq_s32_f32(exponents), 23);
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(values), power));
}

inline float first(Floats values) {
    return vgetq_lane_f32(values, 0);
}

inline float largest(Floats values) {
    return vmaxvq_f32(values);
}

inline float total(Floats values) {
    return vaddvq_f32(values);
}

// The larger magnitude, or no number where one of them is none.
inline Floats larger_magnitude(Floats most, Floats values) {
    return vmaxq_f32(most, vabsq_f32(values));
}

// The largest of magnitudes, or no number if one of them is none.
inline float largest_magnitude(Floats magnitudes) {
    return vmaxvq_f32(magnitudes);
}

// Words of 16 bits as vectors of 32.
inline Integers load_words(const uint16_t* from) {
    return vreinterpretq_s32_u32(vmovl_u16(vld1_u16(from)));
}

// The 4-bit number of each word that begins at bit kShift.
template <int kShift>
inline Integers number(Integers words) {
    if constexpr (kShift > 0) words = vshrq_n_s32(words, kShift);
    return vandq_s32(words, vdupq_n_s32(15));
}

// Numbers from -128 to 127 as 8-bit tokens.
inline void store_tokens(uint8_t* to, const Integers (&whole)[4]) {
    const int16x8_t low = vcombine_s16(vqmovn_s32(whole[0]), vqmovn_s32(whole[1]));
    const int16x8_t high = vcombine_s16(vqmovn_s32(whole[2]), vqmovn_s32(whole[3]));
    vst1q_u8(to, vreinterpretq_u8_s8(vcombine_s8(vqmovn_s16(low), vqmovn_s16(high))));
}

// The sum of `count` tokens as they are stored; `count` is a multiple of 32.
inline int32_t sum_of_tokens(const uint8_t* q, int count) {
    Integers sums = vdupq_n_s32(0);
    for (int k = 0; k < count; k += 16)
        sums = vpadalq_s16(sums, vpaddlq_s8(vreinterpretq_s8_u8(vld1q_u8(q + k))));
    return vaddvq_s32(sums);
}

// The sum of the four 8-bit weights in each lane.
inline Integers sum_of_weights(Integers weights) {
    return vpaddlq_s16(vpaddlq_s8(vreinterpretq_s8_s32(weights)));
}

inline Table load_table(const int8_t* entries) {
    return vld1q_s8(entries);
}

// 16 numbers from -128 to 127 as a table.
inline Table to_table(const Integers (&whole)[4]) {
    int8x16_t table;
    store_tokens(reinterpret_cast<uint8_t*>(&table), whole);
    return table;
}

// 8-bit entries of a table by 4-bit numbers, planes in turn: `lanes` numbers per plane.
inline void look_up(const uint16_t* words, int lanes, Table entries, int8_t* out) {
    const uint8x16_t mask = vdupq_n_u8(15);
    for (int j = 0; j < lanes; j += 8) {
        // Low bytes have the numbers of the first two planes, high bytes of the others.
        const uint8x8x2_t bytes = vld2_u8(reinterpret_cast<const uint8_t*>(words + j));
        const uint8x16_t both = vcombine_u8(bytes.val[0], bytes.val[1]);
        const int8x16_t even = vqtbl1q_s8(entries, vandq_u8(both, mask));
        const int8x16_t odd = vqtbl1q_s8(entries, vshrq_n_u8(both, 4));
        vst1_s8(out + j, vget_low_s8(even));
        vst1_s8(out + lanes + j, vget_low_s8(odd));
        vst1_s8(out + 2 * lanes + j, vget_high_s8(even));
        vst1_s8(out + 3 * lanes + j, vget_high_s8(odd));
    }
}

// The smallest and the largest of a group's 4-bit numbers.
inline void range(const uint16_t* words, int lanes, int& lowest, int& highest) {
    const uint8x16_t mask = vdupq_n_u8(15);
    uint8x16_t low = mask, high = vdupq_n_u8(0);
    for (int j = 0; j < lanes; j += 8) {
        const uint8x16_t bytes = vld1q_u8(reinterpret_cast<const uint8_t*>(words + j));
        const uint8x16_t even = vandq_u8(bytes, mask), odd = vshrq_n_u8(bytes, 4);
        low = vminq_u8(low, vminq_u8(even, odd));
        high = vmaxq_u8(high, vmaxq_u8(even, odd));
    }
    lowest = vminvq_u8(low);
    highest = vmaxvq_u8(high);
}

// Four rows of four words as columns, `stride` words apart.
inline void transpose(const void* const (&rows)[4], uint32_t* to, size_t stride) {
    uint32x4_t r[4];
    for (int i = 0; i < 4; ++i) r[i] = vld1q_u32(static_cast<const uint32_t*>(rows[i]));
    const uint32x4x2_t a = vzipq_u32(r[0], r[2]), b = vzipq_u32(r[1], r[3]);
    const uint32x4x2_t low = vzipq_u32(a.val[0], b.val[0]), high = vzipq_u32(a.val[1], b.val[1]);
    vst1q_u32(to, low.val[0]);
    vst1q_u32(to + stride, low.val[1]);
    vst1q_u32(to + 2 * stride, high.val[0]);
    vst1q_u32(to + 3 * stride, high.val[1]);
}

// Four rows of 16 8-bit numbers as 16 words.
inline void interleave(const int8_t* const (&rows)[4], uint32_t* to) {
    int8x16x4_t all;
    for (int i = 0; i < 4; ++i) all.val[i] = vld1q_s8(rows[i]);
    vst4q_s8(reinterpret_cast<int8_t*>(to), all);
}

// Adds to sums[R][N] the products of R rows of `count` numbers, a multiple of four, with a panel
// [count][4 N].
template <int R, int N>
QVGGT_INLINE inline void multiply(const float* rows, size_t stride, const float* panel, int count,
                                  Floats (&sums)[R][N]) {
    for (int i = 0; i < count; i += 4, panel += 4 * N * kLanes, rows += 4) {
        Floats factors[R];
        unrolled<R>([&](auto r) QVGGT_INLINE { factors[r] = load(rows + r * stride); });
        unrolled<4>([&](auto k) QVGGT_INLINE {
            unrolled<N>([&](auto j) QVGGT_INLINE {
                const Floats weight = load(panel + (k * N + j) * kLanes);
                unrolled<R>([&](auto r) QVGGT_INLINE {
                    sums[r][j] = vfmaq_laneq_f32(sums[r][j], weight, factors[r], k);
                });
            });
        });
    }
}

}  // namespace
}  // namespace qvggt
