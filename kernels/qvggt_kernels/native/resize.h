// Bilinear resizing of channels-last maps: corners come to lie on corners.
#pragma once

#include <algorithm>

#include "short_vectors.h"

namespace qvggt {
namespace {

// Where a pixel of the larger map lies between two of the smaller one.
struct Between {
    int64_t first, second;
    float share;  // of the second
};

inline Between between(int64_t index, int64_t from, int64_t to) {
    const float step = to > 1 ? float(from - 1) / float(to - 1) : 0.0f;
    const float at = step * float(index);
    const int64_t first = std::min(int64_t(at), from - 1);
    return {first, std::min(first + 1, from - 1), at - float(first)};
}

// Maps [frames][height][width][channels], float or bfloat16, and what becomes of them.
template <class T>
struct Resizing {
    const T* x;
    const float* along_u;  // [to_width][channels / 2] that is added to the first half, or null
    const float* along_v;  // [to_height][channels / 2], to the second
    int64_t height, width, to_height, to_width;
    int channels;  // a multiple of kLanes, of twice that with tables

    // Row `y` of a frame: to[to_width][channels]; `blend` holds [width][channels].
    void row(int64_t frame, int64_t y, float* blend, float* to) const {
        const Between rows = between(y, height, to_height);
        const T* one = x + (frame * height + rows.first) * width * channels;
        const T* other = x + (frame * height + rows.second) * width * channels;
        mix(one, other, rows.share, width * channels, blend);
        for (int64_t i = 0; i < to_width; ++i, to += channels) {
            const Between columns = between(i, width, to_width);
            mix(blend + columns.first * channels, blend + columns.second * channels, columns.share,
                channels, to);
            if (!along_u) continue;
            const int half = channels / 2;
            add(along_u + i * half, half, to);
            add(along_v + y * half, half, to + half);
        }
    }

 private:
    template <class In>
    static void mix(const In* one, const In* other, float share, int64_t count, float* to) {
        const Floats a = all(1.0f - share), b = all(share);
        for (int64_t i = 0; i < count; i += kLanes)
            store(to + i, a * load(one + i) + b * load(other + i));
    }

    static void add(const float* values, int count, float* to) {
        for (int i = 0; i < count; i += kLanes) store(to + i, load(to + i) + load(values + i));
    }
};

}  // namespace
}  // namespace qvggt
