// Layer norms of tokens, and of what a residual branch makes of them, with short vectors.

#include "short_vectors.h"
#include "threads.h"

namespace qvggt {
namespace {

constexpr int kSums = 4;  // side by side: a sum has to wait for the one before

inline Floats together(const Floats (&sums)[kSums]) {
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <class T>
struct Norm {
    const T *weight, *bias;  // [columns]
    float eps;
    int columns;  // a multiple of kSums * kLanes

    // The norm of `row`, whose sum is known; the variance is the mean of squares of what is left of
    // the mean.
    void put(const float* row, Floats sum, T* out) const {
        const Floats mean = all(total(sum) / float(columns));
        Floats squares[kSums] = {};
        for (int i = 0; i < columns; i += kSums * kLanes)
            unrolled<kSums>([&](auto k) QVGGT_INLINE {
                const Floats rest = load(row + i + k * kLanes) - mean;
                squares[k] = multiply_add(rest, rest, squares[k]);
            });
        const float variance = total(together(squares)) / float(columns);
        const Floats factor = all(1 / __builtin_sqrtf(variance + eps));
        for (int i = 0; i < columns; i += kLanes)
            store(out + i,
                  multiply_add((load(row + i) - mean) * factor, load(weight + i), load(bias + i)));
    }
};

// Adds gain * branch, rounded, to `x` if there is a branch; `row` becomes x in floats.
template <class T>
Floats read(T* x, const T* branch, const T* gain, int columns, float* row) {
    Floats sums[kSums] = {};
    for (int start = 0; start < columns; start += kSums * kLanes)
        unrolled<kSums>([&](auto k) QVGGT_INLINE {
            const int i = start + k * kLanes;
            Floats values = load(x + i);
            if (branch) {
                store(x + i, values + load(gain + i) * load(branch + i));
                values = load(x + i);
            }
            store(row + i, values);
            sums[k] = sums[k] + values;
        });
    return together(sums);
}

template <class T>
int run(T* x, const T* branch, const T* gain, const Norm<T>& norm, T* out, int64_t rows,
        int threads) {
    const int64_t columns = norm.columns;
    int failed = 0;
#pragma omp parallel num_threads(useful(threads, rows * columns * 32)) reduction(| : failed)
    {
        const Buffer<float> row = allocate<float>(size_t(columns));
        failed = !row;
#pragma omp for schedule(static)
        for (int64_t m = 0; m < rows; ++m) {
            if (failed) continue;
            const T* added = branch ? branch + m * columns : nullptr;
            const Floats sum = read(x + m * columns, added, gain, int(columns), row.get());
            norm.put(row.get(), sum, out + m * columns);
        }
    }
    return failed;
}

}  // namespace
}  // namespace qvggt

// out[rows][columns] = layer norm of x, to which gain * branch is added before if branch is not
// null; all float if `wide`, else bfloat16.
extern "C" QVGGT_EXPORT int QVGGT_SHORT(qvggt_layer_norm)(void* x, const void* branch,
                                                          const void* gain, const void* weight,
                                                          const void* bias, void* out, int wide,
                                                          float eps, int64_t rows, int64_t columns,
                                                          int threads) {
    using namespace qvggt;
    const auto compute = [&](auto* numbers) {
        using T = std::remove_pointer_t<decltype(numbers)>;
        const auto as = [](const void* part) { return static_cast<const T*>(part); };
        const Norm<T> norm{as(weight), as(bias), eps, int(columns)};
        return run(numbers, as(branch), as(gain), norm, static_cast<T*>(out), rows, threads);
    };
    return wide ? compute(static_cast<float*>(x)) : compute(static_cast<bf16*>(x));
}
