// make_qkx3_quants (with importance) and make_qkx2_quants (without): a scale and a minimum, the
// best of many trials. For q2_K, q4_K, q5_K, q4_1 and q5_1.
//
// The trials are NOT independent: one that improves moves the minimum that the trials after it
// start from. "Lanes are trials" gives other bytes; lanes are blocks. The levels of the best trial
// are computed again at the end from its iscale and the minimum it started from: the same
// operations, the same levels.

// A trial multiplies x - min by (start + step * t + NMAX) / (max - min), t = 0 ... count - 1.
struct Trials {
    float start, step;
    int count;
};
// ABSOLUTE: the error of a weight is the difference itself, else its square.
template <int N, int NMAX, bool ABSOLUTE>
struct AffineSearch {
    Batch<N> &b;
    F low[VECTORS], high[VECTORS], sum_w[VECTORS], sum_x[VECTORS]; // of the blocks
    F min[VECTORS];                                                // where the next trial starts
    F best[VECTORS], scale[VECTORS], best_inverse[VECTORS], best_min[VECTORS];
    M filled[VECTORS];   // blocks whose weights are not all equal
    bool trusted = true; // nearest_int did not wrap

    // of the trial at hand
    F inverse[VECTORS], new_scale[VECTORS], new_min[VECTORS];
    M valid[VECTORS];

    ALWAYS_INLINE explicit AffineSearch(Batch<N> &batch) : b(batch) {
        const F zero = V::set1(0);
        for (int v = 0; v < VECTORS; ++v) {
            low[v] = high[v] = V::load(b.x[0] + v * W);
            sum_w[v] = V::load(b.w[0] + v * W);
            sum_x[v] = V::mul(sum_w[v], low[v]);
        }
        for (int i = 1; i < N; ++i)
            for (int v = 0; v < VECTORS; ++v) {
                const F x = V::load(b.x[i] + v * W), w = V::load(b.w[i] + v * W);
                low[v] = V::min(x, low[v]);
                high[v] = V::max(x, high[v]);
                sum_w[v] = V::add(sum_w[v], w);
                sum_x[v] = V::add(sum_x[v], V::mul(w, x));
            }
        for (int v = 0; v < VECTORS; ++v) {
            min[v] = best_min[v] = V::sel(V::gt(low[v], zero), zero, low[v]);
            filled[v] = V::gt(high[v], min[v]);
            best[v] = V::set1(__builtin_inff());
            scale[v] = best_inverse[v] = zero;
            V::store(b.sum_w + v * W, sum_w[v]);
        }
    }
    ALWAYS_INLINE void invert(float steps) {
        const F limit = V::set1(4e6f), under = V::set1(-4e6f); // below 2^22
        for (int v = 0; v < VECTORS; ++v) {
            inverse[v] = V::div(V::set1(steps), V::sub(high[v], min[v]));
            const F largest = V::mul(inverse[v], V::sub(high[v], min[v]));
            const F smallest = V::mul(inverse[v], V::sub(low[v], min[v]));
            const M fine = V::mand(V::mand(V::lt(largest, limit), V::lt(smallest, limit)),
                                   V::gt(smallest, under));
            trusted &= V::bits(V::mand(fine, filled[v])) == V::bits(filled[v]);
        }
    }
    ALWAYS_INLINE F round(int i, int v) const { // of weight i
        return rounded<V>(V::mul(inverse[v], V::sub(V::load(b.x[i] + v * W), min[v])));
    }
    // The start: levels for 1 / inverse and the minimum as they are.
    ALWAYS_INLINE void take_start() {
        for (int i = 0; i < N; ++i)
            for (int v = 0; v < VECTORS; ++v)
                V::store(b.level[i] + v * W,
                         V::max(V::min(round(i, v), V::set1(NMAX)), V::set1(0)));
        for (int v = 0; v < VECTORS; ++v) {
            new_scale[v] = V::div(V::set1(1), inverse[v]);
            new_min[v] = min[v];
            valid[v] = filled[v];
        }
    }
    // A trial: levels, then the scale and the minimum that fit them best.
    ALWAYS_INLINE void fit() {
        const F zero = V::set1(0), top = V::set1(NMAX);
        F sum_l[VECTORS], sum_l2[VECTORS], sum_xl[VECTORS];
        for (int v = 0; v < VECTORS; ++v)
            sum_l[v] = sum_l2[v] = sum_xl[v] = zero;
        for (int i = 0; i < N; ++i)
            for (int v = 0; v < VECTORS; ++v) {
                const F l = V::max(V::min(round(i, v), top), zero);
                const F wl = V::mul(V::load(b.w[i] + v * W), l);
                V::store(b.level[i] + v * W, l);
                sum_l[v] = V::add(sum_l[v], wl);
                sum_l2[v] = V::add(sum_l2[v], V::mul(wl, l));
                sum_xl[v] = V::add(sum_xl[v], V::mul(wl, V::load(b.x[i] + v * W)));
            }
        for (int v = 0; v < VECTORS; ++v) {
            const F l = sum_l[v], l2 = sum_l2[v], xl = sum_xl[v];
            const F D = V::sub(V::mul(sum_w[v], l2), V::mul(l, l));
            const F s = V::div(V::sub(V::mul(sum_w[v], xl), V::mul(sum_x[v], l)), D);
            const F m = V::div(V::sub(V::mul(l2, sum_x[v]), V::mul(l, xl)), D);
            const M positive = V::gt(m, zero);
            valid[v] = V::mand(filled[v], V::gt(D, zero));
            new_scale[v] = V::sel(positive, V::div(xl, l2), s);
            new_min[v] = V::sel(positive, zero, m);
        }
    }
    // Returns the blocks for which the trial is the best so far.
    ALWAYS_INLINE void keep_better(M *better) {
        F error[VECTORS];
        for (int v = 0; v < VECTORS; ++v)
            error[v] = V::set1(0);
        for (int i = 0; i < N; ++i)
            for (int v = 0; v < VECTORS; ++v) {
                const F fitted =
                    V::add(V::mul(new_scale[v], V::load(b.level[i] + v * W)), new_min[v]);
                const F d = V::sub(fitted, V::load(b.x[i] + v * W));
                const F distance = ABSOLUTE ? V::andnot(V::set1(-0.f), d) : V::mul(d, d);
                error[v] = V::add(error[v], V::mul(V::load(b.w[i] + v * W), distance));
            }
        for (int v = 0; v < VECTORS; ++v) {
            better[v] = V::mand(valid[v], V::lt(error[v], best[v]));
            best[v] = V::sel(better[v], error[v], best[v]);
            scale[v] = V::sel(better[v], new_scale[v], scale[v]);
            best_inverse[v] = V::sel(better[v], inverse[v], best_inverse[v]);
            best_min[v] = V::sel(better[v], min[v], best_min[v]);
            min[v] = V::sel(better[v], new_min[v], min[v]);
        }
    }
    ALWAYS_INLINE void finish() {
        for (int v = 0; v < VECTORS; ++v) {
            V::store(b.scale + v * W, V::sel(filled[v], scale[v], V::set1(0)));
            V::store(b.min + v * W, V::sub(V::set1(-0.f), min[v]));
            inverse[v] = best_inverse[v];
            min[v] = best_min[v];
        }
        for (int i = 0; i < N; ++i) {
            F l[VECTORS];
            for (int v = 0; v < VECTORS; ++v)
                l[v] =
                    V::add(V::max(V::min(round(i, v), V::set1(NMAX)), V::set1(0)), V::set1(MAGIC));
            b.take(i, l);
        }
    }
};
// False where nearest_int would wrap. b.min: the negated minimum, as ggml returns it. Where all
// weights are equal the scale and the levels are 0.
template <int N, int NMAX, bool ABSOLUTE>
__attribute__((noinline)) bool search_affine(Batch<N> &b, const Trials trials) {
    AffineSearch<N, NMAX, ABSOLUTE> search(b);
    M better[VECTORS];
    search.invert(NMAX);
    search.take_start();
    search.keep_better(better);
    for (int v = 0; v < VECTORS; ++v) // the start always counts
        search.trusted &= V::bits(better[v]) == V::bits(search.filled[v]);
    for (int t = 0; t < trials.count; ++t) {
        search.invert(trials.start + trials.step * t + NMAX);
        search.fit();
        search.keep_better(better);
    }
    search.finish();
    return search.trusted;
}
