// Scratch that a thread keeps from one kernel to the next: given back to the system, it would come
// as pages that have to be mapped and cleared again, thousands in each run of a network.

#include <cstdlib>

#include "common.h"

namespace qvggt {
namespace {

constexpr int kBlocks = 8;
constexpr size_t kMost = size_t(16) << 20;  // bytes that a thread keeps

struct Block {
    void* memory = nullptr;
    size_t bytes = 0;
};

class Kept {
 public:
    ~Kept() {
        for (const Block& block : blocks_) std::free(block.memory);
    }

    // The smallest block of at least `bytes` that is not much larger; null if there is none.
    Block take(size_t bytes) {
        Block* best = nullptr;
        for (Block& block : blocks_) {
            const bool fits = block.memory && block.bytes >= bytes && block.bytes / 2 <= bytes;
            if (fits && (!best || block.bytes < best->bytes)) best = &block;
        }
        if (!best) return {};
        total_ -= best->bytes;
        return std::exchange(*best, Block());
    }

    // Returns whether the block is kept.
    bool give(const Block& given) {
        if (total_ + given.bytes > kMost) return false;
        for (Block& block : blocks_)
            if (!block.memory) {
                block = given;
                total_ += given.bytes;
                return true;
            }
        return false;
    }

 private:
    Block blocks_[kBlocks];
    size_t total_ = 0;
};

thread_local Kept kept;

}  // namespace

void* take_memory(size_t& bytes) {
    bytes = bytes ? (bytes + 63) / 64 * 64 : 64;
    if (const Block block = kept.take(bytes); block.memory) {
        bytes = block.bytes;
        return block.memory;
    }
    return std::aligned_alloc(64, bytes);
}

void give_memory(void* memory, size_t bytes) {
    if (!kept.give(Block{memory, bytes})) std::free(memory);
}

}  // namespace qvggt
