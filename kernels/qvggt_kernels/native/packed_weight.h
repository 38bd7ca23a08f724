// 4-bit weights of layout planar-int16/1, and the values of their numbers.
#pragma once

#include "common.h"

namespace qvggt {

constexpr int kPlanes = 4;  // numbers in a word
constexpr int kZero = 8;    // number that stands for zero where a group has no zero point
constexpr int kMaxGroup = 128;

// Word j of a group of g columns holds the numbers of columns j, j + g/4, j + g/2, j + 3g/4.
struct PackedWeight {
    const uint16_t* words;  // [rows][groups][lanes]
    const bf16* scales;     // [rows][groups]
    const uint8_t* zeros;   // [rows][groups], or null
    int rows, groups, lanes;
    int columns() const { return groups * lanes * kPlanes; }
};

}  // namespace qvggt
