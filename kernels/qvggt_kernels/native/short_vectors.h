// Vectors that one source is written with for AVX-512, AVX2 and ARM: of 512, 256 and 128 bits.
//
// Their headers define the same names, that for AVX-512 those for floats alone. All of it is local
// to the file that includes it, so that code for one instruction set never stands in for that of
// another.
#pragma once

#include "common.h"

#ifdef __aarch64__
#include "vectors128.h"
#define QVGGT_SHORT(name) name##_neon
#elif defined(__AVX512F__)
#include "vectors512.h"
#define QVGGT_SHORT(name) name##_avx512
#else
#include "vectors256.h"
#define QVGGT_SHORT(name) name##_avx2
#endif

namespace qvggt {
namespace {

constexpr int kOutputs = kLanes > 8 ? 32 : 16;  // of a product
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
