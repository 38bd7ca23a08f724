// A 4-bit linear for a few float32 tokens with short vectors.

#include "gemv.h"
#include "short_vectors.h"

namespace qvggt {
namespace {

struct Short {
    using Floats = qvggt::Floats;
    using Integers = qvggt::Integers;
    struct Table {
        Floats scale, zero;
    };
    static constexpr int kLanes = qvggt::kLanes, kTokens = kRegisters / 4;

    static QVGGT_INLINE Floats all(float value) { return qvggt::all(value); }
    static QVGGT_INLINE Floats add(Floats a, Floats b) { return a + b; }
    static QVGGT_INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
        return qvggt::multiply_add(a, b, c);
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
        return load_words(from);
    }
    // Exact: four bits times the eight of a scale.
    template <int kShift>
    static QVGGT_INLINE Floats values(Integers words, Table table) {
        return (to_floats(number<kShift>(words)) - table.zero) * table.scale;
    }
};

}  // namespace
}  // namespace qvggt

QVGGT_EXPORT_INT4_LINEAR_ROWS(QVGGT_SHORT(qvggt_int4_linear_rows), Short)
