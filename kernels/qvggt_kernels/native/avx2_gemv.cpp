// A 4-bit linear for a few float32 tokens with vectors of 256 bits.

#include "gemv.h"
#include "vectors256.h"

namespace qvggt {
namespace {

struct Avx2 {
    using Floats = __m256;
    using Integers = __m256i;
    struct Table {
        __m256 scale, zero;
    };
    static constexpr int kLanes = 8, kTokens = 4;

    static QVGGT_INLINE Floats all(float value) { return _mm256_set1_ps(value); }
    static QVGGT_INLINE Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
    static QVGGT_INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
        return _mm256_fmadd_ps(a, b, c);
    }
    static QVGGT_INLINE float total(Floats values) { return qvggt::total(values); }
    static QVGGT_INLINE Table table(const PackedWeight& weight, size_t group) {
        return {all(widen(weight.scales[group])),
                all(float(weight.zeros ? weight.zeros[group] : kZero))};
    }
    template <int>
    static QVGGT_INLINE Floats tokens(const float* from) {
        return load(from);
    }
    template <int>
    static QVGGT_INLINE Integers words(const uint16_t* from) {
        return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    }
    // Exact: four bits times the eight of a scale.
    template <int kShift>
    static QVGGT_INLINE Floats values(Integers words, Table table) {
        const __m256i number =
            _mm256_and_si256(_mm256_srli_epi32(words, kShift), _mm256_set1_epi32(15));
        return _mm256_mul_ps(_mm256_sub_ps(_mm256_cvtepi32_ps(number), table.zero), table.scale);
    }
};

}  // namespace
}  // namespace qvggt

QVGGT_EXPORT_INT4_LINEAR_ROWS(qvggt_int4_linear_rows_avx2, Avx2)
