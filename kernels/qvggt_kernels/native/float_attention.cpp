// Attention in float32 with short vectors and an online softmax (Dao et al., FlashAttention), heads
// of 64 numbers.
//
// A task is 96 queries of one head. Its thread packs the head's keys and values once, so that both
// products read whole vectors, and takes 256 keys at a time, which its second-level cache holds:
// six queries after the other meet them, with their scores in the first-level cache.

#include <algorithm>

#include "heads.h"
#include "short_vectors.h"
#include "threads.h"

namespace qvggt {
namespace {

constexpr int kBlock = 256;  // keys
constexpr int kQueries = 16 * kTileRows;

// 2^x for x <= 0, to float32's rounding; what is below 2^-125 becomes that.
inline Floats exp2(Floats x) {
    x = maximum(all(-125.0f), x);
    // Adding it leaves the nearest whole number in the lowest bits.
    const Floats shift = all(12582912.0f);
    const Floats moved = x + shift;
    const Floats f = x - (moved - shift);
    Floats p = all(1.5353362e-4f);
    p = multiply_add(p, f, all(1.3398874e-3f));
    p = multiply_add(p, f, all(9.6184374e-3f));
    p = multiply_add(p, f, all(5.5503325e-2f));
    p = multiply_add(p, f, all(2.4022648e-1f));
    p = multiply_add(p, f, all(6.9314720e-1f));
    p = multiply_add(p, f, all(1.0f));
    return scale_by_power(p, moved);
}

// What a thread holds: a head, the sums of a task's queries, and scores of six.
class Head {
 public:
    explicit Head(int64_t keys)
        : count_(int(keys)),
          padded_((count_ + kOutputs - 1) / kOutputs * kOutputs),
          keys_(allocate<float>(size_t(padded_) * kDim)),
          values_(allocate<float>(size_t(padded_) * kDim)),
          scratch_(allocate<Scratch>(1)) {}

    explicit operator bool() const { return keys_ && values_ && scratch_; }

    // Keys as panels [T/n][64 numbers][n keys], values as [64/n][T][n numbers], n being kOutputs;
    // zeros past the end.
    void fill(const Matrix<float>& k, const Matrix<float>& v, int64_t b, int64_t h) {
        for (int t = 0; t < padded_; ++t) {
            const float* key = k.at(b, h, std::min(t, count_ - 1));
            const float* value = v.at(b, h, std::min(t, count_ - 1));
            const bool is_there = t < count_;
            float* to = keys_.get() + size_t(t / kOutputs) * kDim * kOutputs + t % kOutputs;
            for (int d = 0; d < kDim; ++d) to[size_t(d) * kOutputs] = is_there ? key[d] : 0;
            for (int d = 0; d < kDim; d += kLanes) {
                float* place = values_.get() + (size_t(d / kOutputs) * padded_ + t) * kOutputs;
                store(place + d % kOutputs, is_there ? load(value + d) : all(0.0f));
            }
        }
    }

    // Attention of `count` queries; rows of `out` are `stride` numbers apart.
    void attend(const Matrix<float>& query, int64_t b, int64_t h, int64_t first, int count,
                float* out, int64_t stride) const {
        Scratch& scratch = scratch_[0];
        for (int l = 0; l < count; ++l) {
            scratch.highest[l] = -kInfinity;
            scratch.total[l] = 0;
            const float* row = query.at(b, h, first + l);
            for (int d = 0; d < kDim; d += kLanes) {
                store(scratch.queries[l] + d, load(row + d) * all(kScale));
                store(scratch.sums[l] + d, all(0.0f));
            }
        }
        for (int start = 0; start < count_; start += kBlock)
            for (int l = 0; l < count; l += kTileRows)
                with_rows<kTileRows>(count - l, [&](auto rows) {
                    score<rows.value>(l, start);
                    weigh<rows.value>(l, start);
                    add<rows.value>(l, start);
                });
        for (int l = 0; l < count; ++l)
            for (int d = 0; d < kDim; d += kLanes)
                store(out + l * stride + d, load(scratch.sums[l] + d) / all(scratch.total[l]));
    }

 private:
    struct Scratch {
        float queries[kQueries][kDim];
        float sums[kQueries][kDim];
        float highest[kQueries], total[kQueries];
        float scores[kTileRows][kBlock];
    };

    int end(int start) const { return std::min(kBlock, padded_ - start); }

    // Scores of R queries from `l` on with the keys of a block, minus infinity past the end.
    template <int R>
    void score(int l, int start) const {
        Scratch& scratch = scratch_[0];
        for (int t = 0; t < end(start); t += kOutputs) {
            Floats sums[R][kVectors] = {};
            multiply<R>(scratch.queries[l], kDim, keys_.get() + size_t(start + t) * kDim, kDim,
                        sums);
            unrolled<R>([&](auto r) QVGGT_INLINE {
                unrolled<kVectors>([&](auto j) QVGGT_INLINE {
                    store(scratch.scores[r] + t + j * kLanes, sums[r][j]);
                });
            });
        }
        for (int r = 0; r < R; ++r)
            for (int t = count_ - start; t < end(start); ++t) scratch.scores[r][t] = -kInfinity;
    }

    // Scores become powers of their distance to the highest so far; older sums shrink to it.
    template <int R>
    void weigh(int l, int start) const {
        Scratch& scratch = scratch_[0];
        for (int r = 0; r < R; ++r) {
            float* scores = scratch.scores[r];
            Floats most = all(-kInfinity);
            for (int t = 0; t < end(start); t += kLanes) most = maximum(most, load(scores + t));
            const float now = std::max(scratch.highest[l + r], largest(most));
            const Floats top = all(now);
            Floats sum[2] = {all(0.0f), all(0.0f)};
            for (int t = 0; t < end(start); t += 2 * kLanes)
                unrolled<2>([&](auto i) QVGGT_INLINE {
                    const Floats power = exp2(load(scores + t + i * kLanes) - top);
                    sum[i] = sum[i] + power;
                    store(scores + t + i * kLanes, power);
                });
            const Floats shrink = exp2(all(scratch.highest[l + r] - now));
            scratch.total[l + r] = scratch.total[l + r] * first(shrink) + total(sum[0] + sum[1]);
            scratch.highest[l + r] = now;
            for (int d = 0; d < kDim; d += kLanes)
                store(scratch.sums[l + r] + d, load(scratch.sums[l + r] + d) * shrink);
        }
    }

    // Adds the block's values, as the weights say.
    template <int R>
    void add(int l, int start) const {
        Scratch& scratch = scratch_[0];
        for (int d = 0; d < kDim; d += kOutputs) {
            Floats sums[R][kVectors];
            const auto each = [&](auto&& f) QVGGT_INLINE {
                unrolled<R>([&](auto r) QVGGT_INLINE {
                    unrolled<kVectors>([&](auto j) QVGGT_INLINE {
                        f(sums[r][j], scratch.sums[l + r] + d + j * kLanes);
                    });
                });
            };
            each([](Floats& sum, const float* from) QVGGT_INLINE { sum = load(from); });
            multiply<R>(scratch.scores[0], kBlock,
                        values_.get() + (size_t(d / kOutputs) * padded_ + start) * kOutputs,
                        end(start), sums);
            each([](Floats sum, float* to) QVGGT_INLINE { store(to, sum); });
        }
    }

    int count_, padded_;
    Buffer<float> keys_, values_;
    Buffer<Scratch> scratch_;
};

}  // namespace
}  // namespace qvggt

// out[b][l][h][64] = softmax(q k^T / 8) v; strides in numbers: batch, head, row of q, of k, of v.
extern "C" QVGGT_EXPORT int QVGGT_SHORT(qvggt_float_attention)(
    const float* q, const float* k, const float* v, float* out, const int64_t* strides,
    int64_t batch, int64_t heads, int64_t queries, int64_t keys, int threads) {
    using namespace qvggt;
    const Matrix<float> query(q, strides), key(k, strides + 3), value(v, strides + 6);
    const int64_t pairs = batch * heads, runs = (queries + kQueries - 1) / kQueries;
    int failed = 0;
#pragma omp parallel num_threads(useful(threads, pairs * queries * keys * 4 * kDim)) \
    reduction(| : failed)
    {
        Head head(keys);
        int64_t held = -1;
        failed = !head;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < pairs * runs; ++task) {
            if (failed) continue;
            const int64_t pair = task / runs, b = pair / heads, h = pair % heads;
            if (pair != held) head.fill(key, value, b, h);
            held = pair;
            const int64_t l = task % runs * kQueries;
            head.attend(query, b, h, l, int(std::min<int64_t>(kQueries, queries - l)),
                        out + ((b * queries + l) * heads + h) * kDim, heads * kDim);
        }
    }
    return failed;
}
