// 3x3 convolutions of channels-last float32 maps by Winograd's F(4x4, 3x3): 36 products where the
// definition takes 144 (Lavin and Gray, "Fast algorithms for convolutional neural networks").
//
// A task is 24 tiles of 4x4 pixels. Its thread transforms the 6x6 pixels around each, multiplies
// the 36 places of all tiles by the transformed weights, and transforms the products back. What is
// computed for a tile depends on no other.
#pragma once

#include <algorithm>

#include "short_vectors.h"

namespace qvggt {
namespace {

constexpr int kKernel = 3;
constexpr int kTile = 4;
constexpr int kRead = kTile + kKernel - 1;
constexpr int kPlaces = kRead * kRead;
constexpr int kTiles = 4 * kTileRows;  // of a task

// One row of B^T d, G g and A^T m; numbers lie `stride` apart.

inline void transform_input(const Floats* d, Floats* to, int stride) {
    const Floats d0 = d[0], d1 = d[stride], d2 = d[2 * stride], d3 = d[3 * stride];
    const Floats d4 = d[4 * stride], d5 = d[5 * stride], four = all(4.0f), five = all(5.0f);
    const Floats even = d4 - four * d2, odd = d3 - four * d1;
    const Floats even2 = d4 - d2, odd2 = (d3 - d1) + (d3 - d1);
    to[0] = four * d0 - five * d2 + d4;
    to[stride] = even + odd;
    to[2 * stride] = even - odd;
    to[3 * stride] = even2 + odd2;
    to[4 * stride] = even2 - odd2;
    to[5 * stride] = four * d1 - five * d3 + d5;
}

inline void transform_weight(const Floats* g, Floats* to, int from_stride, int stride) {
    const Floats g0 = g[0], g1 = g[from_stride], g2 = g[2 * from_stride];
    const Floats sum = (g0 + g2) * all(-1.0f / 6), middle = g1 * all(-1.0f / 6);
    const Floats sum2 = g0 * all(1.0f / 24) + g2 * all(1.0f / 6), middle2 = g1 * all(1.0f / 12);
    to[0] = g0 * all(0.25f);
    to[stride] = sum + middle;
    to[2 * stride] = sum - middle;
    to[3 * stride] = sum2 + middle2;
    to[4 * stride] = sum2 - middle2;
    to[5 * stride] = g2;
}

inline void transform_output(const Floats* m, Floats* to, int stride) {
    const Floats m0 = m[0], m1 = m[stride], m2 = m[2 * stride], m3 = m[3 * stride];
    const Floats m4 = m[4 * stride], m5 = m[5 * stride];
    const Floats even = m1 + m2, odd = m1 - m2, even2 = m3 + m4, odd2 = m3 - m4;
    to[0] = m0 + even + even2;
    to[stride] = odd + all(2.0f) * odd2;
    to[2 * stride] = even + all(4.0f) * even2;
    to[3 * stride] = odd + all(8.0f) * odd2 + m5;
}

// What is computed of channels-last maps [frames][height][width][channels].
struct Convolution {
    const float* weight;  // [outputs][inputs][3][3]
    const float* bias;    // [outputs], or null
    const float* total;   // [frames][height][width][outputs] that is added, or null
    bool rectified;       // max(x, 0) is convolved
    int64_t frames, height, width;
    int inputs, outputs;  // multiples of kLanes and of kOutputs

    int64_t rows() const { return (height + kTile - 1) / kTile; }
    int64_t columns() const { return (width + kTile - 1) / kTile; }
    int64_t tiles() const { return frames * rows() * columns(); }
    int64_t operations() const { return tiles() * kPlaces * inputs * outputs; }
    // Numbers of kOutputs outputs' transformed weights, and of all.
    size_t panel() const { return size_t(kPlaces) * inputs * kOutputs; }
    size_t panels() const { return panel() * (outputs / kOutputs); }
};

// Where maps lie: their rows from some on, counted through all frames.
struct Rows {
    const float* x;
    float* out;
    int64_t first_read, first_written;
};

// The transformed weights of kOutputs outputs from `first` on, as panels [36][inputs][kOutputs].
void transform_weights(const Convolution& c, int first, float* panels) {
    for (int i = 0; i < c.inputs; ++i) {
        alignas(64) float numbers[kKernel * kKernel][kOutputs];
        for (int o = 0; o < kOutputs; ++o)
            for (int k = 0; k < kKernel * kKernel; ++k)
                numbers[k][o] =
                    c.weight[(size_t(first + o) * c.inputs + i) * kKernel * kKernel + k];
        for (int j = 0; j < kOutputs; j += kLanes) {
            Floats g[kKernel * kKernel], half[kRead * kKernel], whole[kPlaces];
            for (int k = 0; k < kKernel * kKernel; ++k) g[k] = load(numbers[k] + j);
            for (int k = 0; k < kKernel; ++k) transform_weight(g + k, half + k, kKernel, kKernel);
            for (int k = 0; k < kRead; ++k)
                transform_weight(half + k * kKernel, whole + k * kRead, 1, 1);
            for (int p = 0; p < kPlaces; ++p)
                store(panels + (size_t(p) * c.inputs + i) * kOutputs + j, whole[p]);
        }
    }
}

// What a thread holds: transformed pixels and products of a task's tiles.
class Tiles {
 public:
    explicit Tiles(const Convolution& c)
        : c_(c),
          pixels_(allocate<float>(size_t(kPlaces) * kTiles * c.inputs)),
          products_(allocate<float>(size_t(kPlaces) * kTiles * c.outputs)),
          zeros_(allocate<float>(c.inputs)) {
        if (zeros_) std::fill_n(zeros_.get(), c.inputs, 0.0f);
    }

    explicit operator bool() const { return pixels_ && products_ && zeros_; }

    void convolve(int64_t first, int count, const float* panels, const Rows& maps) const {
        for (int t = 0; t < count; ++t) read(first + t, t, maps);
        multiply_all(count, panels);
        for (int t = 0; t < count; ++t) write(first + t, t, maps);
    }

 private:
    struct Place {
        int64_t frame, y, x;  // of a tile's first pixel
    };

    Place place(int64_t tile) const {
        const int64_t in_frame = tile % (c_.rows() * c_.columns());
        return {tile / (c_.rows() * c_.columns()), in_frame / c_.columns() * kTile,
                in_frame % c_.columns() * kTile};
    }

    void read(int64_t tile, int t, const Rows& maps) const {
        const Place at = place(tile);
        const int64_t above = at.frame * c_.height - maps.first_read;
        const float* from[kPlaces];
        for (int p = 0; p < kPlaces; ++p) {
            const int64_t y = at.y + p / kRead - 1, x = at.x + p % kRead - 1;
            const bool is_inside = 0 <= y && y < c_.height && 0 <= x && x < c_.width;
            from[p] = is_inside ? maps.x + ((above + y) * c_.width + x) * c_.inputs : zeros_.get();
        }
        // What is not a number stays that.
        const Floats least = all(c_.rectified ? 0.0f : -__builtin_inff());
        for (int i = 0; i < c_.inputs; i += kLanes) {
            Floats d[kPlaces], half[kPlaces];
            for (int p = 0; p < kPlaces; ++p) d[p] = maximum(least, load(from[p] + i));
            for (int k = 0; k < kRead; ++k) transform_input(d + k, half + k, kRead);
            for (int k = 0; k < kRead; ++k) transform_input(half + k * kRead, d + k * kRead, 1);
            for (int p = 0; p < kPlaces; ++p)
                store(pixels_.get() + (size_t(p) * kTiles + t) * c_.inputs + i, d[p]);
        }
    }

    void multiply_all(int count, const float* panels) const {
        for (int p = 0; p < kPlaces; ++p)
            for (int o = 0; o < c_.outputs; o += kOutputs) {
                const float* panel =
                    panels + (size_t(o / kOutputs) * kPlaces + p) * c_.inputs * kOutputs;
                for (int t = 0; t < count; t += kTileRows)
                    with_rows<kTileRows>(count - t, [&](auto rows) {
                        constexpr int R = rows.value;
                        Floats sums[R][kVectors] = {};
                        multiply<R, kVectors>(pixels_.get() + (size_t(p) * kTiles + t) * c_.inputs,
                                              c_.inputs, panel, c_.inputs, sums);
                        unrolled<R>([&](auto r) QVGGT_INLINE {
                            unrolled<kVectors>([&](auto j) QVGGT_INLINE {
                                store(product(p, t + r) + o + j * kLanes, sums[r][j]);
                            });
                        });
                    });
            }
    }

    void write(int64_t tile, int t, const Rows& maps) const {
        const Place at = place(tile);
        const int64_t above = maps.first_written * c_.width * c_.outputs;
        const int rows = int(std::min<int64_t>(kTile, c_.height - at.y));
        const int columns = int(std::min<int64_t>(kTile, c_.width - at.x));
        for (int o = 0; o < c_.outputs; o += kLanes) {
            Floats m[kPlaces], half[kTile * kRead], y[kTile * kTile];
            for (int p = 0; p < kPlaces; ++p) m[p] = load(product(p, t) + o);
            for (int k = 0; k < kRead; ++k) transform_output(m + k, half + k, kRead);
            for (int k = 0; k < kTile; ++k) transform_output(half + k * kRead, y + k * kTile, 1);
            const Floats bias = c_.bias ? load(c_.bias + o) : all(0.0f);
            for (int r = 0; r < rows; ++r)
                for (int k = 0; k < columns; ++k) {
                    const size_t to =
                        ((at.frame * c_.height + at.y + r) * c_.width + at.x + k) * c_.outputs + o;
                    Floats sum = y[r * kTile + k] + bias;
                    if (c_.total) sum = sum + load(c_.total + to);
                    store(maps.out + to - above, sum);
                }
        }
    }

    float* product(int p, int t) const {
        return products_.get() + (size_t(p) * kTiles + t) * c_.outputs;
    }

    const Convolution& c_;
    Buffer<float> pixels_, products_, zeros_;
};

}  // namespace
}  // namespace qvggt
