// Steps between the products: quantizing tokens, normalising and turning queries and keys.

#include <algorithm>

#include "threads.h"
#include "vectors.h"

namespace qvggt {
namespace {

// The larger magnitude, or no number where one of them is none: their bits have that order.
inline __m512i larger_magnitude(__m512i most, __m512 values) {
    const __m512i bits = _mm512_castps_si512(values);
    return _mm512_max_epi32(most, _mm512_and_si512(bits, _mm512_set1_epi32(0x7FFFFFFF)));
}

// Rows of tokens to 8-bit numbers, 128 too high, with a step each; the reference's arithmetic. The
// step of a row in which something is not a number is none either.
template <class In>
void quantize(const In* x, uint8_t* q, float* steps, int64_t tokens, int columns, float levels,
              float clip, int threads) {
    const __m512 bound = _mm512_set1_ps(levels), least = _mm512_set1_ps(-levels);
#pragma omp parallel for num_threads(useful(threads, tokens * columns * 32)) schedule(static)
    for (int64_t m = 0; m < tokens; ++m) {
        const In* row = x + m * columns;
        __m512i most = _mm512_setzero_si512(), most2 = most;
        for (int k = 0; k < columns; k += 2 * kLanes) {
            most = larger_magnitude(most, load(row + k));
            most2 = larger_magnitude(most2, load(row + k + kLanes));
        }
        const int32_t bits = _mm512_reduce_max_epi32(_mm512_max_epi32(most, most2));
        float largest;
        __builtin_memcpy(&largest, &bits, 4);
        const float step = largest * clip / levels;
        const __m512 divisor = _mm512_set1_ps(step == 0 ? 1 : step);
        steps[m] = step;
        for (int k = 0; k < columns; k += kLanes) {
            __m512 y = _mm512_div_ps(load(row + k), divisor);
            y = _mm512_max_ps(_mm512_min_ps(y, bound), least);
            const __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32(y), _mm512_set1_epi32(128));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(q + m * columns + k),
                             _mm512_cvtepi32_epi8(whole));
        }
    }
}

constexpr int kDim = 64;
constexpr int kQuarters = 4;

struct Norm {
    __m512 gain[kQuarters], shift[kQuarters];
    Norm(const bf16* weight, const bf16* bias) {
        for (int i = 0; i < kQuarters; ++i) {
            gain[i] = load(weight + 16 * i);
            shift[i] = load(bias + 16 * i);
        }
    }
    // The mean of squares of what is left of the mean, as layer norm is defined; rounded.
    void apply(__m512 (&x)[kQuarters], float eps) const {
        const __m512 sum = _mm512_add_ps(_mm512_add_ps(x[0], x[1]), _mm512_add_ps(x[2], x[3]));
        const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / kDim);
        __m512 squares = _mm512_setzero_ps();
        for (int i = 0; i < kQuarters; ++i) {
            x[i] = _mm512_sub_ps(x[i], mean);
            squares = _mm512_fmadd_ps(x[i], x[i], squares);
        }
        const float variance = _mm512_reduce_add_ps(squares) / kDim;
        const __m512 factor = _mm512_set1_ps(1 / __builtin_sqrtf(variance + eps));
        for (int i = 0; i < kQuarters; ++i)
            x[i] = widen(narrow(_mm512_fmadd_ps(_mm512_mul_ps(x[i], factor), gain[i], shift[i])));
    }
};

}  // namespace
}  // namespace qvggt

extern "C" {

// Quantizes x[tokens][columns] (float if `wide`, else bfloat16) to q + 128 and steps[tokens].
QVGGT_EXPORT void qvggt_quantize_tokens(const void* x, int wide, uint8_t* q, float* steps,
                                        int64_t tokens, int64_t columns, float levels, float clip,
                                        int threads) {
    using namespace qvggt;
    with_numbers(x, wide, [&](auto* numbers) {
        quantize(numbers, q, steps, tokens, int(columns), levels, clip, threads);
    });
}

// Normalises (weights null: not) and turns (cos null: not) queries and keys of
// qkv[frames][tokens][3][heads][64] in place; cos and sin [tokens][64].
QVGGT_EXPORT void qvggt_qk_norm_rope(uint16_t* qkv, const uint16_t* qw, const uint16_t* qb,
                                     const uint16_t* kw, const uint16_t* kb, float eps,
                                     const float* cos, const float* sin, int64_t frames,
                                     int64_t tokens, int64_t heads, int threads) {
    using namespace qvggt;
#pragma omp parallel for num_threads(useful(threads, frames * tokens * heads * 2048)) \
    schedule(static)
    for (int64_t row = 0; row < frames * tokens; ++row) {
        __m512 c[kQuarters], s[kQuarters];
        if (cos)
            for (int i = 0; i < kQuarters; ++i) {
                c[i] = load(cos + row % tokens * kDim + 16 * i);
                s[i] = load(sin + row % tokens * kDim + 16 * i);
            }
        for (int part = 0; part < 2; ++part) {
            bf16* head = qkv + (row * 3 + part) * heads * kDim;
            const bf16 *weight = part ? kw : qw, *bias = part ? kb : qb;
            const Norm norm = weight ? Norm(weight, bias) : Norm(head, head);
            for (int64_t h = 0; h < heads; ++h, head += kDim) {
                __m512 x[kQuarters];
                for (int i = 0; i < kQuarters; ++i) x[i] = load(head + 16 * i);
                if (weight) norm.apply(x, eps);
                if (cos)
                    for (int i = 0; i < kQuarters; i += 2) {
                        const __m512 a = x[i], b = x[i + 1];
                        x[i] = _mm512_sub_ps(_mm512_mul_ps(a, c[i]), _mm512_mul_ps(b, s[i + 1]));
                        x[i + 1] =
                            _mm512_add_ps(_mm512_mul_ps(b, c[i + 1]), _mm512_mul_ps(a, s[i]));
                    }
                for (int i = 0; i < kQuarters; ++i) store(head + 16 * i, x[i], 0xFFFF);
            }
        }
    }
}

}  // extern "C"
