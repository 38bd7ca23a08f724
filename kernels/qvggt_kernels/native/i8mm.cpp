// Linears that multiply 8-bit integers, for ARM processors with products of 8-bit matrices (i8mm,
// ARMv8.6: Neoverse V1 and later, Cortex-A710 and later).

#include "requantize.h"

namespace qvggt {
namespace {

// Products of two tokens with two outputs, eight columns at a time.
struct MatrixProduct {
    static constexpr int kCopies = 1;
    static constexpr int kPairs = kOutputs / 2;

    // Words of neighbouring columns lie side by side: [words/2][16 outputs][2].
    static void prepare(uint32_t* words, int count) {
        for (int w = 0; w < count; w += 2, words += 2 * kOutputs) {
            uint32x4_t first[kVectors], second[kVectors];
            for (int j = 0; j < kVectors; ++j) {
                first[j] = vld1q_u32(words + j * kLanes);
                second[j] = vld1q_u32(words + kOutputs + j * kLanes);
            }
            for (int j = 0; j < kVectors; ++j)
                vst2q_u32(words + 2 * j * kLanes, {{first[j], second[j]}});
        }
    }

    template <int R>
    static QVGGT_INLINE void multiply(const uint8_t* rows, size_t stride, const uint32_t* panel,
                                      int words, int32x4_t (&sums)[R][kVectors]) {
        constexpr int kRows = (R + 1) / 2;
        int32x4_t products[kRows][kPairs] = {};
        for (int w = 0; w < words; w += 2, panel += 2 * kOutputs, rows += 8) {
            int8x16_t token[kRows];
            unrolled<kRows>([&](auto r) QVGGT_INLINE {
                // The last row again where it has no other beside it.
                constexpr int next = 2 * r + 1 < R ? 2 * r + 1 : 2 * r;
                token[r] = vreinterpretq_s8_u8(
                    vcombine_u8(vld1_u8(rows + 2 * r * stride), vld1_u8(rows + next * stride)));
            });
            unrolled<kPairs>([&](auto n) QVGGT_INLINE {
                const int8x16_t weight = vreinterpretq_s8_u32(vld1q_u32(panel + 4 * n));
                unrolled<kRows>([&](auto r) QVGGT_INLINE {
                    products[r][n] = vmmlaq_s32(products[r][n], token[r], weight);
                });
            });
        }
        unrolled<R>([&](auto r) QVGGT_INLINE {
            unrolled<kVectors>([&](auto j) QVGGT_INLINE {
                const int64x2_t low = vreinterpretq_s64_s32(products[r / 2][2 * j]);
                const int64x2_t high = vreinterpretq_s64_s32(products[r / 2][2 * j + 1]);
                const int64x2_t row = r % 2 ? vtrn2q_s64(low, high) : vtrn1q_s64(low, high);
                sums[r][j] = vaddq_s32(sums[r][j], vreinterpretq_s32_s64(row));
            });
        });
    }
};

}  // namespace
}  // namespace qvggt

QVGGT_EXPORT_INTEGER_LINEARS(i8mm, MatrixProduct)
