// Convolutions of 3x3 pixels of channels-last maps, in tasks of some tiles; see winograd.h.

#include "winograd.h"

#include "threads.h"

namespace qvggt {
namespace {

int convolve(const Convolution& c, const Rows& maps, int threads) {
    const Buffer<float> panels = allocate<float>(c.panels());
    if (!panels) return 1;
    threads = useful(threads, c.operations());
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        const Tiles tiles(c);
        failed = !tiles;
#pragma omp for schedule(static)
        for (int o = 0; o < c.outputs; o += kOutputs)
            transform_weights(c, o, panels.get() + o / kOutputs * c.panel());
#pragma omp for schedule(dynamic, 1)
        for (int64_t first = 0; first < c.tiles(); first += kTiles) {
            if (failed) continue;
            tiles.convolve(first, int(std::min<int64_t>(kTiles, c.tiles() - first)), panels.get(),
                           maps);
        }
    }
    return failed;
}

}  // namespace
}  // namespace qvggt

// out[frames][height][width][outputs] = total + bias + 3x3 convolution of x, or of max(x, 0) if
// `rectified`, with zeros around it.
extern "C" QVGGT_EXPORT int QVGGT_SHORT(qvggt_convolution3x3)(const float* x, const float* weight,
                                                              const float* bias, const float* total,
                                                              float* out, int rectified,
                                                              int64_t frames, int64_t height,
                                                              int64_t width, int64_t inputs,
                                                              int64_t outputs, int threads) {
    using namespace qvggt;
    const Convolution convolution{weight, bias,  total,       rectified != 0, frames,
                                  height, width, int(inputs), int(outputs)};
    return convolve(convolution, Rows{x, out, 0, 0}, threads);
}
