// Attention in bfloat16 with an online softmax (Dao et al., FlashAttention), heads of 64 numbers.
//
// A task is a run of queries of one head. Its thread packs the head's keys and values once, so
// that both products read whole vectors, and takes six queries at a time over blocks of keys:
// scores and probabilities of a block stay in the first-level cache.

#include <algorithm>
#include <limits>
#include <type_traits>

#include "threads.h"
#include "vectors.h"

namespace qvggt {
namespace {

constexpr int kDim = 64;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kWords = kDim / 2;  // words of a query or key
constexpr int kBlock = 512;       // keys of which a row's scores are held at once
constexpr int kTasksPerThread = 6;
constexpr int kMinQueries = 16 * kTileRows;

struct Matrix {
    const bf16* data;
    int64_t batch, head, row;  // strides
    const bf16* at(int64_t b, int64_t h, int64_t r) const {
        return data + b * batch + h * head + r * row;
    }
};

// 2^x for x <= 0, within 4e-6; the result is rounded to bfloat16 anyway.
inline __m512 exp2(__m512 x) {
    const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT);
    const __m512 n = _mm512_sub_ps(x, f);
    __m512 p = _mm512_set1_ps(9.6753644e-3f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5490479e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022244e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314721e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

// Keys t of a head as panels [T/64][32 words][64 keys]; keys past the end are zero.
void pack_keys(const Matrix& k, int64_t b, int64_t h, int keys, uint32_t* panels) {
    for (int t = 0; t < (keys + kPanel - 1) / kPanel * kPanel; t += kLanes) {
        uint32_t* panel = panels + size_t(t / kPanel) * kWords * kPanel + t % kPanel;
        for (int w = 0; w < kWords; w += kLanes) {
            __m512i rows[kLanes];
            for (int i = 0; i < kLanes; ++i)
                rows[i] = t + i < keys ? _mm512_loadu_si512(k.at(b, h, t + i) + 2 * w)
                                       : _mm512_setzero_si512();
            transpose(rows);
            for (int i = 0; i < kLanes; ++i)
                _mm512_store_si512(panel + size_t(w + i) * kPanel, rows[i]);
        }
    }
}

// Values of a head as one panel [pairs of keys][64 numbers]; keys past the end are zero.
void pack_values(const Matrix& v, int64_t b, int64_t h, int keys, uint32_t* panel) {
    alignas(64) uint16_t order[2][32];
    for (int i = 0; i < 32; ++i) {
        order[0][i] = uint16_t(i / 2 + i % 2 * 32);
        order[1][i] = uint16_t(order[0][i] + 16);
    }
    const __m512i low = _mm512_load_si512(order[0]), high = _mm512_load_si512(order[1]);
    for (int t = 0; t < (keys + kPanel - 1) / kPanel * kPanel; t += 2, panel += kDim) {
        for (int half = 0; half < 2; ++half) {
            const __m512i a =
                t < keys ? _mm512_loadu_si512(v.at(b, h, t) + 32 * half) : _mm512_setzero_si512();
            const __m512i c = t + 1 < keys ? _mm512_loadu_si512(v.at(b, h, t + 1) + 32 * half)
                                           : _mm512_setzero_si512();
            _mm512_store_si512(panel + 32 * half, _mm512_permutex2var_epi16(a, low, c));
            _mm512_store_si512(panel + 32 * half + 16, _mm512_permutex2var_epi16(a, high, c));
        }
    }
}

struct Scratch {
    float scores[kTileRows][kBlock];
    bf16 weights[kTileRows][kBlock];
};

// Attention of R queries over all keys of a head.
template <int R>
void attend(const bf16* q, int64_t stride, const uint32_t* keys, const uint32_t* values, int count,
            float scale, bf16* out, int64_t out_stride, Scratch& scratch) {
    float highest[R], total[R];
    __m512 sums[R][kVectors];
    for (int r = 0; r < R; ++r) {
        highest[r] = -kInfinity;
        total[r] = 0;
        for (int j = 0; j < kVectors; ++j) sums[r][j] = _mm512_setzero_ps();
    }
    const __m512 factor = _mm512_set1_ps(scale);
    for (int start = 0; start < count; start += kBlock) {
        const int used = std::min(kBlock, count - start);
        const int padded = (used + kPanel - 1) / kPanel * kPanel;
        __m512 most[R];
        for (int r = 0; r < R; ++r) most[r] = _mm512_set1_ps(-kInfinity);
        for (int t = 0; t < padded; t += kPanel) {
            __m512 tile[R][kVectors];
            for (int r = 0; r < R; ++r)
                for (int j = 0; j < kVectors; ++j) tile[r][j] = _mm512_setzero_ps();
            multiply<R, Bf16Product>(reinterpret_cast<const char*>(q), stride * sizeof(bf16),
                                     keys + size_t(start + t) * kWords, kWords, tile);
            if (t + kPanel > used)
                for (int j = 0; j < kVectors; ++j) {
                    const __mmask16 real = first(used - t - j * kLanes);
                    for (int r = 0; r < R; ++r)
                        tile[r][j] =
                            _mm512_mask_mov_ps(_mm512_set1_ps(-kInfinity), real, tile[r][j]);
                }
            for (int r = 0; r < R; ++r)
                for (int j = 0; j < kVectors; ++j) {
                    _mm512_store_ps(scratch.scores[r] + t + j * kLanes, tile[r][j]);
                    most[r] = _mm512_max_ps(most[r], tile[r][j]);
                }
        }
        for (int r = 0; r < R; ++r) {
            const float now = std::max(highest[r], _mm512_reduce_max_ps(most[r]) * scale);
            const __m512 top = _mm512_set1_ps(now);
            __m512 sum = _mm512_setzero_ps(), sum2 = _mm512_setzero_ps();
            for (int t = 0; t < padded; t += 2 * kLanes) {
                const __m512 a =
                    exp2(_mm512_fmsub_ps(_mm512_load_ps(scratch.scores[r] + t), factor, top));
                const __m512 c = exp2(
                    _mm512_fmsub_ps(_mm512_load_ps(scratch.scores[r] + t + kLanes), factor, top));
                sum = _mm512_add_ps(sum, a);
                sum2 = _mm512_add_ps(sum2, c);
                _mm512_store_si512(scratch.weights[r] + t,
                                   reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(c, a)));
            }
            const __m512 shrink = exp2(_mm512_set1_ps(highest[r] - now));
            total[r] = total[r] * _mm512_cvtss_f32(shrink) +
                       _mm512_reduce_add_ps(_mm512_add_ps(sum, sum2));
            for (int j = 0; j < kVectors; ++j) sums[r][j] = _mm512_mul_ps(sums[r][j], shrink);
            highest[r] = now;
        }
        multiply<R, Bf16Product>(reinterpret_cast<const char*>(scratch.weights[0]),
                                 sizeof scratch.weights[0], values + size_t(start / 2) * kDim,
                                 padded / 2, sums);
    }
    for (int r = 0; r < R; ++r) {
        const __m512 share = _mm512_set1_ps(1 / total[r]);
        for (int j = 0; j < kVectors; ++j)
            store(out + r * out_stride + j * kLanes, _mm512_mul_ps(sums[r][j], share), 0xFFFF);
    }
}

}  // namespace
}  // namespace qvggt

// out[b][l][h][64] = softmax(q k^T / 8) v; strides in numbers: batch, head, row of q, of k, of v.
extern "C" QVGGT_EXPORT int qvggt_attention(const uint16_t* q, const uint16_t* k, const uint16_t* v,
                                            uint16_t* out, const int64_t* strides, int64_t batch,
                                            int64_t heads, int64_t queries, int64_t keys,
                                            int threads) {
    using namespace qvggt;
    const Matrix query{q, strides[0], strides[1], strides[2]};
    const Matrix key{k, strides[3], strides[4], strides[5]};
    const Matrix value{v, strides[6], strides[7], strides[8]};
    const int64_t pairs = batch * heads;
    threads = useful(threads, pairs * queries * keys * 4 * kDim);
    const int64_t wanted =
        std::max<int64_t>(1, kTasksPerThread * threads / std::max<int64_t>(1, pairs));
    const int64_t run = std::max<int64_t>(
        kMinQueries, ((queries + wanted - 1) / wanted + kTileRows - 1) / kTileRows * kTileRows);
    const int64_t runs = (queries + run - 1) / run;
    const size_t padded = size_t(keys + kPanel - 1) / kPanel * kPanel;
    const float scale = 0.125f * 1.44269504f;
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        auto panels = allocate<uint32_t>(padded * kWords);
        auto values = allocate<uint32_t>(padded / 2 * kDim);
        auto scratch = allocate<Scratch>(1);
        int64_t held = -1;
        failed = !panels || !values || !scratch;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < pairs * runs; ++task) {
            if (failed) continue;
            const int64_t pair = task / runs, b = pair / heads, h = pair % heads;
            if (pair != held) {
                pack_keys(key, b, h, int(keys), panels.get());
                pack_values(value, b, h, int(keys), values.get());
                held = pair;
            }
            const int64_t end = std::min(queries, (task % runs + 1) * run);
            for (int64_t l = task % runs * run; l < end; l += kTileRows)
                with_rows(int(std::min<int64_t>(kTileRows, end - l)), [&](auto rows) {
                    attend<rows.value>(
                        query.at(b, h, l), query.row, panels.get(), values.get(), int(keys), scale,
                        out + ((b * queries + l) * heads + h) * kDim, heads * kDim, scratch[0]);
                });
        }
    }
    return failed;
}
