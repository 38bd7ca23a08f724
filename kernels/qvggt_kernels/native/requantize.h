// Linears for processors with dot products of 8-bit integers: 4-bit weights are requantized to
// eight bits and a scale per row, with the bits of the reference and of gemm.cpp.
#pragma once

#include <cmath>

#include "integers.h"

namespace qvggt {
namespace {

inline int zero_of(const PackedWeight& weight, size_t group) {
    return weight.zeros ? weight.zeros[group] : kZero;
}

// The largest magnitude of a row of a 4-bit weight.
inline float largest(const PackedWeight& weight, int row) {
    float most = 0;
    for (int g = 0; g < weight.groups; ++g) {
        const size_t group = size_t(row) * weight.groups + g;
        int lowest, highest;
        range(weight.words + group * weight.lanes, weight.lanes, lowest, highest);
        const int zero = zero_of(weight, group);
        const int steps = std::max(std::abs(highest - zero), std::abs(lowest - zero));
        most = std::max(most, float(steps) * std::fabs(widen(weight.scales[group])));
    }
    return most;
}

// A group's 16 values in units of `step`, rounded to whole numbers.
inline Table table(const PackedWeight& weight, size_t group, float step) {
    constexpr float kNumbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const Floats scale = all(widen(weight.scales[group]));
    const Floats zero = all(float(zero_of(weight, group)));
    Integers whole[16 / kLanes];
    for (int i = 0; i < 16 / kLanes; ++i)
        whole[i] = nearest((load(kNumbers + i * kLanes) - zero) * scale / all(step));
    return to_table(whole);
}

// Rows [n, n+16) of a 4-bit weight in 8-bit numbers, one scale per row.
inline void requantize(const PackedWeight& weight, int n, const Segment& to) {
    for (int i = 0; i < kOutputs; ++i) {
        const float step = largest(weight, std::min(n + i, weight.rows - 1)) / 127.0f;
        to.scales[i] = step == 0 ? 1 : step;
    }
    for (int g = 0; g < weight.groups; ++g)
        unpack_group(weight, n, g, to.words + size_t(g) * weight.lanes * kOutputs,
                     [&](int i, size_t at) { return table(weight, at, to.scales[i]); });
}

}  // namespace
}  // namespace qvggt

// The functions of gemm.cpp with the same arguments, for a product of integers.
#define QVGGT_EXPORT_INTEGER_LINEARS(suffix, Product)                                              \
    extern "C" {                                                                                   \
    QVGGT_EXPORT int qvggt_int4_linear_int8_##suffix(const uint8_t* q, const float* steps,         \
                                                     const uint16_t* words,                        \
                                                     const uint16_t* scales, const uint8_t* zeros, \
                                                     const float* bias, void* out, int wide,       \
                                                     int64_t tokens, int64_t rows, int64_t groups, \
                                                     int64_t lanes, int threads) {                 \
        using namespace qvggt;                                                                     \
        const PackedWeight weight{words, scales, zeros, int(rows), int(groups), int(lanes)};       \
        const auto fill = [&](int n, const Panel& panel, int part) {                               \
            requantize(weight, n, panel.segment(part, 0));                                         \
        };                                                                                         \
        return multiply<Product>(Tokens{q, steps, tokens, weight.columns()},                       \
                                 Weight<decltype(fill)>{rows, 1, false, bias, fill},               \
                                 Output{out, rows, wide != 0}, threads);                           \
    }                                                                                              \
                                                                                                   \
    QVGGT_EXPORT int qvggt_integer_linear_##suffix(const uint8_t* q, const float* steps,           \
                                                   const int8_t* weight, const float* scales,      \
                                                   const float* bias, void* out, int wide,         \
                                                   int64_t tokens, int64_t outputs,                \
                                                   int64_t columns, int threads) {                 \
        using namespace qvggt;                                                                     \
        return multiply_8_bits<Product>(Tokens{q, steps, tokens, int(columns)}, weight, scales,    \
                                        bias, Output{out, outputs, wide != 0}, threads);           \
    }                                                                                              \
    }
