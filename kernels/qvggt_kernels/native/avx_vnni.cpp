// Linears that multiply 8-bit integers, for processors with AVX2 and AVX-VNNI but without AVX-512.

#include "requantize.h"

namespace qvggt {
namespace {

// Products of any 8-bit weights, four a word in one instruction.
struct VnniProduct {
    static constexpr int kCopies = 1;
    static void prepare(uint32_t*, int) {}

    static QVGGT_INLINE __m256i add(__m256i sum, __m256i token, __m256i weight) {
        // For the intrinsic, GCC copies every sum before and after the instruction.
        asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(token), "x"(weight));
        return sum;
    }

    template <int R>
    static QVGGT_INLINE void multiply(const uint8_t* rows, size_t stride, const uint32_t* panel,
                                      int words, __m256i (&sums)[R][kVectors]) {
        for (int w = 0; w < words; ++w, panel += kOutputs, rows += 4) {
            __m256i weight[kVectors];
            unrolled<kVectors>([&](auto j)
                                   QVGGT_INLINE { weight[j] = load_integers(panel + j * kLanes); });
            unrolled<R>([&](auto r) QVGGT_INLINE {
                int32_t word;
                __builtin_memcpy(&word, rows + r * stride, 4);
                const __m256i token = _mm256_set1_epi32(word);
                unrolled<kVectors>(
                    [&](auto j) QVGGT_INLINE { sums[r][j] = add(sums[r][j], token, weight[j]); });
            });
        }
    }
};

}  // namespace
}  // namespace qvggt

QVGGT_EXPORT_INTEGER_LINEARS(avx_vnni, VnniProduct)
