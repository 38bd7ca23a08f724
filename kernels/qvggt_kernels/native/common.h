// What kernels of every instruction set share: nothing here depends on one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>

#define QVGGT_EXPORT __attribute__((visibility("default")))

#define QVGGT_INLINE __attribute__((always_inline))

namespace qvggt {

using bf16 = uint16_t;

constexpr int kTileRows = 6;

// Memory for whole vectors of at least `bytes`, which become what there is of it; null if none is
// left. See memory.cpp.
void* take_memory(size_t& bytes);
void give_memory(void* memory, size_t bytes);

struct Giver {
    size_t bytes = 0;
    void operator()(void* memory) const { give_memory(memory, bytes); }
};

template <class T>
using Buffer = std::unique_ptr<T[], Giver>;

// Scratch of the calling thread, with any numbers in it; null if there is none left.
template <class T>
static QVGGT_INLINE inline Buffer<T> allocate(size_t count) {
    size_t bytes = count * sizeof(T);
    void* memory = take_memory(bytes);
    return Buffer<T>(static_cast<T*>(memory), Giver{bytes});
}

static QVGGT_INLINE inline float widen(bf16 value) {
    const uint32_t bits = uint32_t(value) << 16;
    float result;
    __builtin_memcpy(&result, &bits, 4);
    return result;
}

// Calls f with what `numbers` points to: float if `wide`, else bfloat16.
template <class F>
QVGGT_INLINE inline void with_numbers(const void* numbers, int wide, F&& f) {
    if (wide)
        f(static_cast<const float*>(numbers));
    else
        f(static_cast<const bf16*>(numbers));
}

// Calls f with 0 to N - 1 as compile-time constants. Arrays of sums that are indexed by constants
// alone become registers with any compiler; in loops, that depends on its version.
template <class F, int... I>
QVGGT_INLINE inline void unrolled(F&& f, std::integer_sequence<int, I...>) {
    (f(std::integral_constant<int, I>()), ...);
}

template <int N, class F>
QVGGT_INLINE inline void unrolled(F&& f) {
    unrolled(f, std::make_integer_sequence<int, N>());
}

// Calls f with a number of rows, 1 to Max, as a compile-time constant.
template <int Max, class F>
QVGGT_INLINE inline void with_rows(int64_t rows, F&& f) {
    if constexpr (Max > 1) {
        if (rows < Max) return with_rows<Max - 1>(rows, f);
    }
    f(std::integral_constant<int, Max>());
}

}  // namespace qvggt
