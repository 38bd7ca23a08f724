// Linears that multiply 8-bit integers, for ARM processors with dot products (ARMv8.2: Jetson Orin,
// Raspberry Pi 5).

#include "requantize.h"

namespace qvggt {
namespace {

// Products of four numbers a lane; six tokens' words, 24 sums and a weight or two fill 32
// registers.
struct DotProduct {
    static constexpr int kCopies = 1;
    static void prepare(uint32_t*, int) {}

    template <int R>
    static QVGGT_INLINE void multiply(const uint8_t* rows, size_t stride, const uint32_t* panel,
                                      int words, int32x4_t (&sums)[R][kVectors]) {
        for (int w = 0; w < words; w += 4, panel += 4 * kOutputs, rows += 16) {
            int8x16_t token[R];
            unrolled<R>([&](auto r) QVGGT_INLINE {
                token[r] = vreinterpretq_s8_u8(vld1q_u8(rows + r * stride));
            });
            unrolled<4>([&](auto i) QVGGT_INLINE {
                unrolled<kVectors>([&](auto j) QVGGT_INLINE {
                    const int8x16_t weight =
                        vreinterpretq_s8_u32(vld1q_u32(panel + i * kOutputs + j * kLanes));
                    unrolled<R>([&](auto r) QVGGT_INLINE {
                        sums[r][j] = vdotq_laneq_s32(sums[r][j], weight, token[r], i);
                    });
                });
            });
        }
    }
};

}  // namespace
}  // namespace qvggt

QVGGT_EXPORT_INTEGER_LINEARS(dotprod, DotProduct)
