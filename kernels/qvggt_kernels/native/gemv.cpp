// A 4-bit linear for a few float32 tokens with vectors of 512 bits.

#include "gemv.h"

#include "unpack.h"

namespace qvggt {
namespace {

struct Avx512 {
    using Floats = __m512;
    using Integers = __m512i;
    using Table = __m512;  // the 16 values of a group
    static constexpr int kLanes = 16, kTokens = 8;

    template <int N>
    static constexpr __mmask16 kFirst = __mmask16((1u << N) - 1);

    static QVGGT_INLINE Floats all(float value) { return _mm512_set1_ps(value); }
    static QVGGT_INLINE Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
    static QVGGT_INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
        return _mm512_fmadd_ps(a, b, c);
    }
    static QVGGT_INLINE float total(Floats values) { return _mm512_reduce_add_ps(values); }
    static QVGGT_INLINE Table table(const PackedWeight& weight, size_t group) {
        return levels(weight, group);
    }
    template <int N>
    static QVGGT_INLINE Floats tokens(const float* from) {
        return load(from, kFirst<N>);
    }
    template <int N>
    static QVGGT_INLINE Integers words(const uint16_t* from) {
        return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(kFirst<N>, from));
    }
    template <int kShift>
    static QVGGT_INLINE Floats values(Integers words, Table table) {
        return _mm512_permutexvar_ps(_mm512_srli_epi32(words, kShift), table);
    }
};

}  // namespace
}  // namespace qvggt

QVGGT_EXPORT_INT4_LINEAR_ROWS(qvggt_int4_linear_rows, Avx512)
