// Attention with an online softmax (Dao et al., FlashAttention), heads of 64 numbers: scores in
// bfloat16 or in 8-bit integers (Zhang et al., SageAttention), products with values in bfloat16.
//
// A task is a run of queries of one head. Its thread packs the head's keys and values once, so
// that both products read whole vectors, and takes six queries at a time over blocks of keys:
// scores and probabilities of a block stay in the first-level cache.

#include <algorithm>
#include <type_traits>

#include "heads.h"
#include "tiles.h"
#include "vectors.h"

namespace qvggt {
namespace {

constexpr int kWords = kDim / 2;   // words of a query or key, or of a value
constexpr int kWords8 = kDim / 4;  // words of a query or key in 8 bits
constexpr int kBlock = 512;        // keys of which a row's scores are held at once
constexpr int kTasksPerThread = 6;

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
void pack_keys(const Matrix<bf16>& k, int64_t b, int64_t h, int keys, uint32_t* panels) {
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

// A row of 64 numbers less `mean`, in 8-bit integers; returns its step.
inline float quantize(const bf16* row, const __m512 (&mean)[kVectors], __m512i& q) {
    __m512 x[kVectors], most = _mm512_setzero_ps();
    for (int j = 0; j < kVectors; ++j) {
        x[j] = _mm512_sub_ps(load(row + j * kLanes), mean[j]);
        most = _mm512_max_ps(most, _mm512_abs_ps(x[j]));
    }
    const float step = _mm512_reduce_max_ps(most) / 127;
    const __m512 divisor = _mm512_set1_ps(step == 0 ? 1 : step);
    alignas(64) int8_t bytes[kDim];
    for (int j = 0; j < kVectors; ++j)
        _mm_store_si128(reinterpret_cast<__m128i*>(bytes + j * kLanes),
                        _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_div_ps(x[j], divisor))));
    q = _mm512_load_si512(bytes);
    return step;
}

// Keys of a head in 8 bits as panels [T/64][16 words][64 keys], less their mean, which adds the
// same number to all scores of a query; `steps` [T], and `base` [T], where sums begin because
// queries are 128 too high.
void pack_keys8(const Matrix<bf16>& k, int64_t b, int64_t h, int keys, uint32_t* panels,
                float* steps, int32_t* base) {
    __m512 mean[kVectors];
    for (int j = 0; j < kVectors; ++j) {
        mean[j] = _mm512_setzero_ps();
        for (int t = 0; t < keys; ++t)
            mean[j] = _mm512_add_ps(mean[j], load(k.at(b, h, t) + j * kLanes));
        mean[j] = _mm512_div_ps(mean[j], _mm512_set1_ps(float(keys)));
    }
    const __m512i ones = _mm512_set1_epi8(1);
    for (int t = 0; t < (keys + kPanel - 1) / kPanel * kPanel; t += kLanes) {
        uint32_t* panel = panels + size_t(t / kPanel) * kWords8 * kPanel + t % kPanel;
        __m512i rows[kLanes];
        for (int i = 0; i < kLanes; ++i) {
            rows[i] = _mm512_setzero_si512();
            steps[t + i] = t + i < keys ? quantize(k.at(b, h, t + i), mean, rows[i]) : 0;
        }
        transpose(rows);
        __m512i sum = _mm512_setzero_si512();
        for (int i = 0; i < kLanes; ++i) {
            sum = Int8Product::add(sum, ones, rows[i]);
            _mm512_store_si512(panel + size_t(i) * kPanel, rows[i]);
        }
        sum = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sum, 7));
        _mm512_store_si512(base + t, sum);
    }
}

// Values of a head as one panel [pairs of keys][64 numbers]; keys past the end are zero.
void pack_values(const Matrix<bf16>& v, int64_t b, int64_t h, int keys, uint32_t* panel) {
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
    uint8_t queries[kTileRows][kDim];
};

// What a thread holds of a head, and its memory for six queries.
struct Head {
    Buffer<uint32_t> keys, values;
    Buffer<float> steps;
    Buffer<int32_t> base;
    Buffer<Scratch> scratch;

    Head(size_t padded, bool in_integers)
        : keys(allocate<uint32_t>(padded * (in_integers ? kWords8 : kWords))),
          values(allocate<uint32_t>(padded / 2 * kDim)),
          steps(allocate<float>(in_integers ? padded : 0)),
          base(allocate<int32_t>(in_integers ? padded : 0)),
          scratch(allocate<Scratch>(1)) {}

    explicit operator bool() const { return keys && values && steps && base && scratch; }

    template <bool kIntegers>
    void fill(const Matrix<bf16>& k, const Matrix<bf16>& v, int64_t b, int64_t h, int count) {
        if constexpr (kIntegers)
            pack_keys8(k, b, h, count, keys.get(), steps.get(), base.get());
        else
            pack_keys(k, b, h, count, keys.get());
        pack_values(v, b, h, count, values.get());
    }

    // Scores of R queries with 64 keys from t, to scores[R][kBlock]; `most` [R] rises to them.
    // Keys from `count` on score minus infinity.
    template <int R, bool kIntegers>
    QVGGT_INLINE inline void score(const void* q, size_t stride, int t, int count, float* scores,
                                   __m512* most) const {
        const char* rows = static_cast<const char*>(q);
        using Product = std::conditional_t<kIntegers, Int8Product, Bf16Product>;
        constexpr int words = kIntegers ? kWords8 : kWords;
        typename Product::Sum sums[R][kVectors];
        for (int r = 0; r < R; ++r)
            for (int j = 0; j < kVectors; ++j)
                if constexpr (kIntegers)
                    sums[r][j] = _mm512_load_si512(base.get() + t + j * kLanes);
                else
                    sums[r][j] = _mm512_setzero_ps();
        multiply<R, Product>(rows, stride, keys.get() + size_t(t) * words, words, sums);
        for (int j = 0; j < kVectors; ++j) {
            const __mmask16 real = first(count - t - j * kLanes);
            for (int r = 0; r < R; ++r) {
                __m512 x;
                if constexpr (kIntegers)
                    x = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[r][j]),
                                      _mm512_load_ps(steps.get() + t + j * kLanes));
                else
                    x = sums[r][j];
                x = _mm512_mask_mov_ps(_mm512_set1_ps(-kInfinity), real, x);
                _mm512_store_ps(scores + r * kBlock + j * kLanes, x);
                most[r] = _mm512_max_ps(most[r], x);
            }
        }
    }
};

// Attention of R queries over all keys of a head.
template <int R, bool kIntegers>
void attend(const bf16* q, int64_t stride, const Head& head, int count, bf16* out,
            int64_t out_stride) {
    Scratch& scratch = head.scratch[0];
    float highest[R], total[R], scale[R];
    const void* queries = q;
    size_t bytes = size_t(stride) * sizeof(bf16);
    for (int r = 0; r < R; ++r) scale[r] = kScale;
    if constexpr (kIntegers) {
        const __m512 none[kVectors] = {};
        for (int r = 0; r < R; ++r) {
            __m512i numbers;
            const float step = quantize(q + r * stride, none, numbers);
            // Zeros score zero whatever they are multiplied by, and keys past the end do not.
            scale[r] *= step == 0 ? 1 : step;
            // 128 more, which is the highest bit inverted.
            _mm512_storeu_si512(scratch.queries[r],
                                _mm512_xor_si512(numbers, _mm512_set1_epi8(-128)));
        }
        queries = scratch.queries;
        bytes = sizeof scratch.queries[0];
    }
    __m512 sums[R][kVectors];
    for (int r = 0; r < R; ++r) {
        highest[r] = -kInfinity;
        total[r] = 0;
        for (int j = 0; j < kVectors; ++j) sums[r][j] = _mm512_setzero_ps();
    }
    for (int start = 0; start < count; start += kBlock) {
        const int used = std::min(kBlock, count - start);
        const int padded = (used + kPanel - 1) / kPanel * kPanel;
        __m512 most[R];
        for (int r = 0; r < R; ++r) most[r] = _mm512_set1_ps(-kInfinity);
        for (int t = 0; t < padded; t += kPanel)
            head.score<R, kIntegers>(queries, bytes, start + t, count, scratch.scores[0] + t, most);
        for (int r = 0; r < R; ++r) {
            const float now = std::max(highest[r], _mm512_reduce_max_ps(most[r]) * scale[r]);
            const __m512 top = _mm512_set1_ps(now), factor = _mm512_set1_ps(scale[r]);
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
                                 sizeof scratch.weights[0],
                                 head.values.get() + size_t(start / 2) * kDim, padded / 2, sums);
    }
    for (int r = 0; r < R; ++r) {
        const __m512 share = _mm512_set1_ps(1 / total[r]);
        for (int j = 0; j < kVectors; ++j)
            store(out + r * out_stride + j * kLanes, _mm512_mul_ps(sums[r][j], share), 0xFFFF);
    }
}

template <bool kIntegers>
int run(const Matrix<bf16>& query, const Matrix<bf16>& key, const Matrix<bf16>& value, bf16* out,
        int64_t batch, int64_t heads, int64_t queries, int64_t keys, int threads) {
    const int64_t pairs = batch * heads;
    const size_t padded = size_t(keys + kPanel - 1) / kPanel * kPanel;
    const Blocks blocks{pairs, queries, pairs * queries * keys * 4 * kDim};
    return for_tiles(
        blocks, kTasksPerThread, threads, [&] { return Head(padded, kIntegers); },
        [&](Head& head, int64_t pair) {
            head.fill<kIntegers>(key, value, pair / heads, pair % heads, int(keys));
        },
        [&](const Head& head, int64_t pair, int64_t l, auto count) {
            const int64_t b = pair / heads, h = pair % heads;
            bf16* to = out + ((b * queries + l) * heads + h) * kDim;
            attend<count.value, kIntegers>(query.at(b, h, l), query.row, head, int(keys), to,
                                           heads * kDim);
        });
}

}  // namespace
}  // namespace qvggt

// out[b][l][h][64] = softmax(q k^T / 8) v, with scores in 8-bit integers or not; strides in
// numbers: batch, head, row of q, of k, of v.
extern "C" QVGGT_EXPORT int qvggt_attention(const uint16_t* q, const uint16_t* k, const uint16_t* v,
                                            uint16_t* out, const int64_t* strides, int in_integers,
                                            int64_t batch, int64_t heads, int64_t queries,
                                            int64_t keys, int threads) {
    using namespace qvggt;
    const Matrix<bf16> query(q, strides), key(k, strides + 3), value(v, strides + 6);
    return in_integers ? run<true>(query, key, value, out, batch, heads, queries, keys, threads)
                       : run<false>(query, key, value, out, batch, heads, queries, keys, threads);
}
