// Vectors that one source is written with for AVX2 and for ARM: 256 bits there, 128 here.
//
// Both headers define the same names. All of it is local to the file that includes it, so that code
// for one instruction set never stands in for that of another.
#pragma once

#include "common.h"

#ifdef __aarch64__
#include "vectors128.h"
#define QVGGT_SHORT(name) name##_neon
#else
#include "vectors256.h"
#define QVGGT_SHORT(name) name##_avx2
#endif

namespace qvggt {
namespace {

constexpr int kOutputs = 16;  // of a product
constexpr int kVectors = kOutputs / kLanes;

template <class T>
inline void store(T* to, Floats values, int count) {
    if (count >= kLanes) return store(to, values);
    T all[kLanes];
    store(all, values);
    for (int i = 0; i < count; ++i) to[i] = all[i];
}

}  // namespace
}  // namespace qvggt
