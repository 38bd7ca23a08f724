// Heads of 64 numbers, laid out as they come.
#pragma once

#include <cstdint>
#include <limits>

namespace qvggt {
namespace {

constexpr int kDim = 64;
constexpr float kScale = 0.125f * 1.44269504f;  // 1 / sqrt(64), and powers of two instead of e
constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <class T>
struct Matrix {
    const T* data;
    int64_t batch, head, row;  // strides
    Matrix(const T* data, const int64_t* strides)
        : data(data), batch(strides[0]), head(strides[1]), row(strides[2]) {}
    const T* at(int64_t b, int64_t h, int64_t r) const {
        return data + b * batch + h * head + r * row;
    }
};

}  // namespace
}  // namespace qvggt
