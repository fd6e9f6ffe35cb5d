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
// False where nearest_int would wrap. min: the negated minimum, as ggml returns it; 0 scale and
// levels where all weights are equal. ABSOLUTE: the error of a weight is the difference itself,
// else its square.
template <int N, int NMAX, bool ABSOLUTE>
__attribute__((noinline)) bool search_affine(Batch<N> &b, const Trials trials) {
    const F zero = V::set1(0), top = V::set1((float)NMAX), sign = V::set1(-0.f);
    F low[VECTORS], high[VECTORS], min[VECTORS], sum_w[VECTORS], sum_x[VECTORS];
    F best[VECTORS], scale[VECTORS], best_inverse[VECTORS], best_min[VECTORS];
    M filled[VECTORS];
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
    bool trusted = true;
    for (int v = 0; v < VECTORS; ++v) {
        min[v] = V::sel(V::gt(low[v], zero), zero, low[v]);
        filled[v] = V::gt(high[v], min[v]);
        best[v] = V::set1(__builtin_inff());
        scale[v] = best_inverse[v] = zero;
        best_min[v] = min[v];
        V::store(b.sum_w + v * W, sum_w[v]);
    }
    for (int t = -1; t < trials.count; ++t) { // -1: the start, NMAX / (max - min)
        const F steps = V::set1(t < 0 ? (float)NMAX : trials.start + trials.step * t + NMAX);
        F inverse[VECTORS], sum_l[VECTORS], sum_l2[VECTORS], sum_xl[VECTORS], s[VECTORS],
            m[VECTORS], error[VECTORS];
        M valid[VECTORS];
        for (int v = 0; v < VECTORS; ++v) {
            inverse[v] = V::div(steps, V::sub(high[v], min[v]));
            sum_l[v] = sum_l2[v] = sum_xl[v] = error[v] = zero;
            const F largest = V::mul(inverse[v], V::sub(high[v], min[v])),
                    smallest = V::mul(inverse[v], V::sub(low[v], min[v]));
            const F limit = V::set1(4e6f); // below 2^22
            const M fine = V::mand(V::mand(V::lt(largest, limit), V::lt(smallest, limit)),
                                   V::gt(smallest, V::set1(-4e6f)));
            trusted &= V::bits(V::mand(fine, filled[v])) == V::bits(filled[v]);
        }
        for (int i = 0; i < N; ++i)
            for (int v = 0; v < VECTORS; ++v) {
                const F x = V::load(b.x[i] + v * W), w = V::load(b.w[i] + v * W);
                F l = rounded(V::mul(inverse[v], V::sub(x, min[v])));
                l = V::max(V::min(l, top), zero);
                V::store(b.level[i] + v * W, l);
                const F wl = V::mul(w, l);
                sum_l[v] = V::add(sum_l[v], wl);
                sum_l2[v] = V::add(sum_l2[v], V::mul(wl, l));
                sum_xl[v] = V::add(sum_xl[v], V::mul(wl, x));
            }
        for (int v = 0; v < VECTORS; ++v) {
            if (t < 0) {
                s[v] = V::div(V::set1(1), inverse[v]);
                m[v] = min[v];
                valid[v] = filled[v];
                continue;
            }
            const F D = V::sub(V::mul(sum_w[v], sum_l2[v]), V::mul(sum_l[v], sum_l[v]));
            valid[v] = V::mand(filled[v], V::gt(D, zero));
            s[v] = V::div(V::sub(V::mul(sum_w[v], sum_xl[v]), V::mul(sum_x[v], sum_l[v])), D);
            m[v] = V::div(V::sub(V::mul(sum_l2[v], sum_x[v]), V::mul(sum_l[v], sum_xl[v])), D);
            const M positive = V::gt(m[v], zero);
            s[v] = V::sel(positive, V::div(sum_xl[v], sum_l2[v]), s[v]);
            m[v] = V::sel(positive, zero, m[v]);
        }
        for (int i = 0; i < N; ++i)
            for (int v = 0; v < VECTORS; ++v) {
                const F d = V::sub(V::add(V::mul(s[v], V::load(b.level[i] + v * W)), m[v]),
                                   V::load(b.x[i] + v * W));
                const F distance = ABSOLUTE ? V::andnot(sign, d) : V::mul(d, d);
                error[v] = V::add(error[v], V::mul(V::load(b.w[i] + v * W), distance));
            }
        for (int v = 0; v < VECTORS; ++v) {
            const M better = V::mand(valid[v], V::lt(error[v], best[v]));
            best[v] = V::sel(better, error[v], best[v]);
            scale[v] = V::sel(better, s[v], scale[v]);
            best_inverse[v] = V::sel(better, inverse[v], best_inverse[v]);
            best_min[v] = V::sel(better, min[v], best_min[v]);
            min[v] = V::sel(better, m[v], min[v]);
            if (t < 0)
                trusted &= V::bits(better) == V::bits(filled[v]); // the start always counts
        }
    }
    for (int v = 0; v < VECTORS; ++v) {
        V::store(b.scale + v * W, V::sel(filled[v], scale[v], zero));
        V::store(b.min + v * W, V::sub(sign, min[v]));
    }
    for (int i = 0; i < N; ++i) {
        F l[VECTORS];
        for (int v = 0; v < VECTORS; ++v) {
            l[v] = V::add(V::mul(best_inverse[v], V::sub(V::load(b.x[i] + v * W), best_min[v])),
                          V::set1(MAGIC));
            l[v] = V::max(V::min(l[v], V::add(V::set1(MAGIC), top)), V::set1(MAGIC));
        }
        b.take(i, l);
    }
    return trusted;
}
