// Quantizing tokens with short vectors.

#include "short_vectors.h"
#include "threads.h"

namespace qvggt {
namespace {

// Rows of tokens to 8-bit numbers, kTokenZero too high, with a step each; the reference's
// arithmetic. The step of a row in which something is not a number is none either.
template <class In>
void quantize(const In* x, uint8_t* q, float* steps, int64_t tokens, int columns, float levels,
              float clip, int threads) {
    const Floats bound = all(levels), least = all(-levels);
#pragma omp parallel for num_threads(useful(threads, tokens * columns * 32)) schedule(static)
    for (int64_t m = 0; m < tokens; ++m) {
        const In* row = x + m * columns;
        Floats most = all(0.0f);
        for (int k = 0; k < columns; k += kLanes) most = larger_magnitude(most, load(row + k));
        const float step = largest_magnitude(most) * clip / levels;
        const Floats divisor = all(step == 0 ? 1.0f : step);
        steps[m] = step;
        for (int k = 0; k < columns; k += 4 * kLanes) {
            Integers whole[4];
            for (int i = 0; i < 4; ++i)
                whole[i] =
                    nearest(maximum(minimum(load(row + k + i * kLanes) / divisor, bound), least));
            store_tokens(q + m * columns + k, whole);
        }
    }
}

}  // namespace
}  // namespace qvggt

// The function of tokens.cpp with the same arguments.
extern "C" QVGGT_EXPORT void QVGGT_SHORT(qvggt_quantize_tokens)(const void* x, int wide, uint8_t* q,
                                                                float* steps, int64_t tokens,
                                                                int64_t columns, float levels,
                                                                float clip, int threads) {
    using namespace qvggt;
    with_numbers(x, wide, [&](auto* numbers) {
        quantize(numbers, q, steps, tokens, int(columns), levels, clip, threads);
    });
}
