// Attention in float32 with vectors of 256 bits and an online softmax (Dao et al., FlashAttention),
// heads of 64 numbers.
//
// A task is 96 queries of one head. Its thread packs the head's keys and values once, so that both
// products read whole vectors, and takes 256 keys at a time, which its second-level cache holds:
// six queries after the other meet them, with their scores in the first-level cache.

#include <algorithm>

#include "heads.h"
#include "threads.h"
#include "vectors256.h"

namespace qvggt {
namespace {

constexpr int kOutputs = 16;  // of a product: 6 x 2 sums, 2 weights and 1 factor: 15 registers
constexpr int kVectors = kOutputs / kLanes;
constexpr int kBlock = 256;  // keys
constexpr int kQueries = 16 * kTileRows;

// 2^x for x <= 0, to float32's rounding; what is below 2^-125 becomes that.
inline __m256 exp2(__m256 x) {
    x = _mm256_max_ps(_mm256_set1_ps(-125.0f), x);
    // Adding it leaves the nearest whole number in the lowest bits.
    const __m256 shift = _mm256_set1_ps(12582912.0f);
    const __m256 moved = _mm256_add_ps(x, shift);
    const __m256 f = _mm256_sub_ps(x, _mm256_sub_ps(moved, shift));
    __m256 p = _mm256_set1_ps(1.5353362e-4f);
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.3398874e-3f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(9.6184374e-3f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(5.5503325e-2f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(2.4022648e-1f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(6.9314720e-1f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f));
    const __m256i power = _mm256_slli_epi32(_mm256_castps_si256(moved), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), power));
}

// Adds to sums[R][2] the products of R rows of `count` numbers with a panel [count][16].
template <int R>
QVGGT_INLINE inline void multiply(const float* rows, size_t stride, const float* panel, int count,
                                  __m256 (&sums)[R][kVectors]) {
    for (int i = 0; i < count; ++i, panel += kOutputs, ++rows) {
        __m256 weight[kVectors];
        unrolled<kVectors>([&](auto j)
                               QVGGT_INLINE { weight[j] = _mm256_load_ps(panel + j * kLanes); });
        unrolled<R>([&](auto r) QVGGT_INLINE {
            const __m256 factor = _mm256_broadcast_ss(rows + r * stride);
            unrolled<kVectors>([&](auto j) QVGGT_INLINE {
                sums[r][j] = _mm256_fmadd_ps(factor, weight[j], sums[r][j]);
            });
        });
    }
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

    // Keys as panels [T/16][64 numbers][16 keys], values as [4][T][16 numbers]; zeros past the end.
    void fill(const Matrix<float>& k, const Matrix<float>& v, int64_t b, int64_t h) {
        for (int t = 0; t < padded_; ++t) {
            const float* key = k.at(b, h, std::min(t, count_ - 1));
            const float* value = v.at(b, h, std::min(t, count_ - 1));
            const bool is_there = t < count_;
            float* to = keys_.get() + size_t(t / kOutputs) * kDim * kOutputs + t % kOutputs;
            for (int d = 0; d < kDim; ++d) to[size_t(d) * kOutputs] = is_there ? key[d] : 0;
            for (int d = 0; d < kDim; d += kLanes) {
                float* place = values_.get() + (size_t(d / kOutputs) * padded_ + t) * kOutputs;
                store(place + d % kOutputs, is_there ? load(value + d) : _mm256_setzero_ps());
            }
        }
    }

    // Attention of `count` queries; rows of `out` are `stride` numbers apart.
    void attend(const Matrix<float>& query, int64_t b, int64_t h, int64_t first, int count,
                float* out, int64_t stride) const {
        Scratch& all = scratch_[0];
        for (int l = 0; l < count; ++l) {
            all.highest[l] = -kInfinity;
            all.total[l] = 0;
            const float* row = query.at(b, h, first + l);
            for (int d = 0; d < kDim; d += kLanes) {
                const __m256 scaled = _mm256_mul_ps(load(row + d), _mm256_set1_ps(kScale));
                store(all.queries[l] + d, scaled);
                store(all.sums[l] + d, _mm256_setzero_ps());
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
                store(out + l * stride + d,
                      _mm256_div_ps(load(all.sums[l] + d), _mm256_set1_ps(all.total[l])));
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
        Scratch& all = scratch_[0];
        for (int t = 0; t < end(start); t += kOutputs) {
            __m256 sums[R][kVectors] = {};
            multiply<R>(all.queries[l], kDim, keys_.get() + size_t(start + t) * kDim, kDim, sums);
            unrolled<R>([&](auto r) QVGGT_INLINE {
                unrolled<kVectors>([&](auto j) QVGGT_INLINE {
                    store(all.scores[r] + t + j * kLanes, sums[r][j]);
                });
            });
        }
        for (int r = 0; r < R; ++r)
            for (int t = count_ - start; t < end(start); ++t) all.scores[r][t] = -kInfinity;
    }

    // Scores become powers of their distance to the highest so far; older sums shrink to it.
    template <int R>
    void weigh(int l, int start) const {
        Scratch& all = scratch_[0];
        for (int r = 0; r < R; ++r) {
            float* scores = all.scores[r];
            __m256 most = _mm256_set1_ps(-kInfinity), sum = _mm256_setzero_ps(), sum2 = sum;
            for (int t = 0; t < end(start); t += kLanes)
                most = _mm256_max_ps(most, load(scores + t));
            const float now = std::max(all.highest[l + r], largest(most));
            const __m256 top = _mm256_set1_ps(now);
            for (int t = 0; t < end(start); t += kOutputs) {
                const __m256 a = exp2(_mm256_sub_ps(load(scores + t), top));
                const __m256 b = exp2(_mm256_sub_ps(load(scores + t + kLanes), top));
                sum = _mm256_add_ps(sum, a);
                sum2 = _mm256_add_ps(sum2, b);
                store(scores + t, a);
                store(scores + t + kLanes, b);
            }
            const __m256 shrink = exp2(_mm256_set1_ps(all.highest[l + r] - now));
            all.total[l + r] = all.total[l + r] * _mm256_cvtss_f32(shrink) +
                               qvggt::total(_mm256_add_ps(sum, sum2));
            all.highest[l + r] = now;
            for (int d = 0; d < kDim; d += kLanes)
                store(all.sums[l + r] + d, _mm256_mul_ps(load(all.sums[l + r] + d), shrink));
        }
    }

    // Adds the block's values, as the weights say.
    template <int R>
    void add(int l, int start) const {
        Scratch& all = scratch_[0];
        for (int d = 0; d < kDim; d += kOutputs) {
            __m256 sums[R][kVectors];
            const auto each = [&](auto&& f) QVGGT_INLINE {
                unrolled<R>([&](auto r) QVGGT_INLINE {
                    unrolled<kVectors>([&](auto j) QVGGT_INLINE {
                        f(sums[r][j], all.sums[l + r] + d + j * kLanes);
                    });
                });
            };
            each([](__m256& sum, const float* from) QVGGT_INLINE { sum = load(from); });
            multiply<R>(all.scores[0], kBlock,
                        values_.get() + (size_t(d / kOutputs) * padded_ + start) * kOutputs,
                        end(start), sums);
            each([](__m256 sum, float* to) QVGGT_INLINE { store(to, sum); });
        }
    }

    int count_, padded_;
    Buffer<float> keys_, values_;
    Buffer<Scratch> scratch_;
};

}  // namespace
}  // namespace qvggt

// out[b][l][h][64] = softmax(q k^T / 8) v; strides in numbers: batch, head, row of q, of k, of v.
// Scores are never in integers: the argument is there for attention.cpp's sake.
extern "C" QVGGT_EXPORT int qvggt_attention_avx2(const float* q, const float* k, const float* v,
                                                 float* out, const int64_t* strides, int,
                                                 int64_t batch, int64_t heads, int64_t queries,
                                                 int64_t keys, int threads) {
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
