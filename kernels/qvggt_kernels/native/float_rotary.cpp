// Norm and rotation of float32 queries and keys with short vectors; heads of 64 numbers stay in
// registers from their norm to their rotation.

#include "heads.h"
#include "short_vectors.h"
#include "threads.h"

namespace qvggt {
namespace {

constexpr int kQuarter = kDim / 4 / kLanes;  // vectors of a quarter
constexpr int kHead = 4 * kQuarter;

// Layer norm of a head: the variance is the mean of squares of what is left of the mean.
inline void normalise(Floats (&x)[kHead], const float* gain, const float* shift, float eps) {
    Floats sum = x[0];
    unrolled<kHead - 1>([&](auto i) QVGGT_INLINE { sum = sum + x[i + 1]; });
    const Floats mean = all(total(sum) / kDim);
    Floats squares = all(0.0f);
    unrolled<kHead>([&](auto i) QVGGT_INLINE {
        x[i] = x[i] - mean;
        squares = multiply_add(x[i], x[i], squares);
    });
    const Floats factor = all(1 / __builtin_sqrtf(total(squares) / kDim + eps));
    unrolled<kHead>([&](auto i) QVGGT_INLINE {
        x[i] = multiply_add(x[i] * factor, load(gain + i * kLanes), load(shift + i * kLanes));
    });
}

// Pairs of quarters turn by one angle.
inline void turn(Floats (&x)[kHead], const float* cos, const float* sin) {
    unrolled<2 * kQuarter>([&](auto i) QVGGT_INLINE {
        constexpr int a = i / kQuarter * 2 * kQuarter + i % kQuarter, b = a + kQuarter;
        const Floats first = x[a], second = x[b];
        x[a] = first * load(cos + a * kLanes) - second * load(sin + b * kLanes);
        x[b] = second * load(cos + b * kLanes) + first * load(sin + a * kLanes);
    });
}

}  // namespace
}  // namespace qvggt

// Normalises (weights null: not) and turns (cos null: not) queries and keys of
// qkv[frames][tokens][3][heads][64] in place; cos and sin [tokens][64].
extern "C" QVGGT_EXPORT void QVGGT_SHORT(qvggt_float_qk_norm_rope)(
    float* qkv, const float* qw, const float* qb, const float* kw, const float* kb, float eps,
    const float* cos, const float* sin, int64_t frames, int64_t tokens, int64_t heads,
    int threads) {
    using namespace qvggt;
#pragma omp parallel for num_threads(useful(threads, frames * tokens * heads * 2048)) \
    schedule(static)
    for (int64_t row = 0; row < frames * tokens; ++row)
        for (int part = 0; part < 2; ++part) {
            float* head = qkv + (row * 3 + part) * heads * kDim;
            const int64_t angles = row % tokens * kDim;
            for (int64_t h = 0; h < heads; ++h, head += kDim) {
                Floats x[kHead];
                unrolled<kHead>([&](auto i) QVGGT_INLINE { x[i] = load(head + i * kLanes); });
                if (qw) normalise(x, part ? kw : qw, part ? kb : qb, eps);
                if (cos) turn(x, cos + angles, sin + angles);
                unrolled<kHead>([&](auto i) QVGGT_INLINE { store(head + i * kLanes, x[i]); });
            }
        }
}
