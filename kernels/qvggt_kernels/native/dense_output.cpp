// The last steps of a dense head in one pass: resizing, places, a convolution of 3x3 pixels, a
// rectifier, and sums over the channels.
//
// A task is the rows of one row of Winograd's tiles. What is between its input and its output, maps
// of many channels at full resolution, never exists as a whole: a thread's second-level cache holds
// six rows of the resized map and four of the convolved one.

#include "resize.h"
#include "threads.h"
#include "winograd.h"

namespace qvggt {
namespace {

// out[frames][outputs][height][width] = weight . max(hidden, 0) + bias for each pixel.
struct LastSums {
    const float* weight;  // [outputs][channels]
    const float* bias;    // [outputs], or null
    float* out;
    int64_t height, width;
    int channels, outputs;

    // Rows `y` to `end` of a frame, of hidden[end - y][width][channels].
    void put(int64_t frame, int64_t y, int64_t end, const float* hidden) const {
        for (int o = 0; o < outputs; ++o) {
            const float* factors = weight + size_t(o) * channels;
            float* to = out + ((frame * outputs + o) * height + y) * width;
            const float* pixel = hidden;
            for (int64_t i = 0; i < (end - y) * width; ++i, pixel += channels) {
                Floats sum = all(0.0f);
                for (int c = 0; c < channels; c += kLanes)
                    sum = multiply_add(maximum(all(0.0f), load(pixel + c)), load(factors + c), sum);
                to[i] = total(sum) + (bias ? bias[o] : 0.0f);
            }
        }
    }
};

// What a thread holds of a band: four rows of tiles' output, and what they are made of.
template <class T>
class Band {
 public:
    Band(const Resizing<T>& resizing, const Convolution& convolution, const LastSums& last)
        : resizing_(resizing),
          convolution_(convolution),
          last_(last),
          blend_(allocate<float>(size_t(resizing.width) * resizing.channels)),
          resized_(allocate<float>(size_t(kRead) * resizing.to_width * resizing.channels)),
          hidden_(allocate<float>(size_t(kTile) * resizing.to_width * convolution.outputs)),
          tiles_(convolution) {}

    explicit operator bool() const { return blend_ && resized_ && hidden_ && tiles_; }

    void run(int64_t frame, int64_t y, const float* panels) const {
        const int64_t width = resizing_.to_width, end = std::min(y + kTile, resizing_.to_height);
        const int64_t above = std::max<int64_t>(0, y - 1);
        const size_t row = size_t(width) * resizing_.channels;
        for (int64_t each = above; each < std::min(end + 1, resizing_.to_height); ++each)
            resizing_.row(frame, each, blend_.get(), resized_.get() + (each - above) * row);
        const Rows rows{resized_.get(), hidden_.get(), above, y};
        for (int64_t first = 0; first < convolution_.columns(); first += kTiles)
            tiles_.convolve(y / kTile * convolution_.columns() + first,
                            int(std::min<int64_t>(kTiles, convolution_.columns() - first)), panels,
                            rows);
        last_.put(frame, y, end, hidden_.get());
    }

 private:
    const Resizing<T>& resizing_;
    const Convolution& convolution_;
    const LastSums& last_;
    Buffer<float> blend_, resized_, hidden_;
    Tiles tiles_;
};

template <class T>
int run(const Resizing<T>& resizing, const Convolution& convolution, const LastSums& last,
        int64_t frames, int threads) {
    const Buffer<float> panels = allocate<float>(convolution.panels());
    if (!panels) return 1;
    threads = useful(threads, frames * convolution.operations());
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        const Band<T> band(resizing, convolution, last);
        failed = !band;
#pragma omp for schedule(static)
        for (int o = 0; o < convolution.outputs; o += kOutputs)
            transform_weights(convolution, o, panels.get() + o / kOutputs * convolution.panel());
#pragma omp for schedule(dynamic, 1) collapse(2)
        for (int64_t frame = 0; frame < frames; ++frame)
            for (int64_t row = 0; row < convolution.rows(); ++row) {
                if (failed) continue;
                band.run(frame, row * kTile, panels.get());
            }
    }
    return failed;
}

}  // namespace
}  // namespace qvggt

// out[frames][outputs][to_height][to_width] = last_weight . max(hidden, 0) + last_bias, where
// hidden is bias + the 3x3 convolution of x (float if `wide`, else bfloat16), resized, and along_u
// and along_v.
extern "C" QVGGT_EXPORT int QVGGT_SHORT(qvggt_dense_output)(
    const void* x, const float* along_u, const float* along_v, const float* weight,
    const float* bias, const float* last_weight, const float* last_bias, float* out, int wide,
    int64_t frames, int64_t height, int64_t width, int64_t to_height, int64_t to_width,
    int64_t inputs, int64_t hidden, int64_t outputs, int threads) {
    using namespace qvggt;
    const Convolution convolution{weight,    bias,     nullptr,     false,      1,
                                  to_height, to_width, int(inputs), int(hidden)};
    const LastSums last{last_weight, last_bias,   out,         to_height,
                        to_width,    int(hidden), int(outputs)};
    const auto compute = [&](auto* maps) {
        using T = std::remove_const_t<std::remove_pointer_t<decltype(maps)>>;
        const Resizing<T> resizing{maps,  along_u,   along_v,  height,
                                   width, to_height, to_width, int(inputs)};
        return run(resizing, convolution, last, frames, threads);
    };
    return wide ? compute(static_cast<const float*>(x)) : compute(static_cast<const bf16*>(x));
}
