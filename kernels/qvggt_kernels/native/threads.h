// How many threads a step is worth.
#pragma once

#include <algorithm>
#include <cstdint>

namespace qvggt {

// Operations below which waking another thread takes longer than it saves.
constexpr int64_t kOperationsPerThread = 1 << 22;

static inline int useful(int threads, int64_t operations) {
    return int(std::clamp<int64_t>(operations / kOperationsPerThread, 1, threads));
}

}  // namespace qvggt
