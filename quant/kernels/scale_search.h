// make_qx_quants with rmse_type 1: a scale without offset, the best of 19 trials. For q3_K, q6_K,
// q4_0 and q5_0.
//
// A trial rounds x * (NMAX + 0.1 * t) / -max to levels -NMAX ... NMAX-1 and takes the scale that
// fits them best; its score is (sum w x l)^2 / (sum w l^2). Trials depend on each other only by "is
// it better", so each lane runs them in the original order on its own block. |x * iscale| <= NMAX +
// 1: nearest_int never wraps here. The levels of the best trial are computed again at the end from
// its iscale: the same operations, the same levels.
constexpr float EMPTY = 1e-15f; // a block whose largest weight is below counts as zero

// The weight of largest magnitude in W blocks from lane `o` on, the first of equals. Returns which
// blocks are not empty.
template <int N>
INLINE M largest_of_blocks(const Batch<N> &b, int o, F *max) {
    F amax = V::set1(0);
    *max = V::set1(0);
    for (int i = 0; i < N; ++i) {
        const F x = V::load(b.x[i] + o), ax = V::andnot(V::set1(-0.f), x);
        const M larger = V::gt(ax, amax);
        amax = V::sel(larger, ax, amax);
        *max = V::sel(larger, x, *max);
    }
    return V::ge(amax, V::set1(EMPTY));
}

// Levels are counted from -NMAX, but are 0 in an empty block, whose scale is 0.
template <int N, int NMAX>
__attribute__((noinline)) void search_scales(Batch<N> &b) {
    const F zero = V::set1(0), low = V::set1(-NMAX), high = V::set1(NMAX - 1);
    F max[VECTORS], best[VECTORS], scale[VECTORS], best_inverse[VECTORS];
    M filled[VECTORS];
    for (int v = 0; v < VECTORS; ++v) {
        filled[v] = largest_of_blocks(b, v * W, max + v);
        for (int i = 0; i < N; ++i)
            V::store(b.level[i] + v * W, V::mul(V::load(b.w[i] + v * W), V::load(b.x[i] + v * W)));
    }
    const auto &wx = b.level;        // w * x, which all trials need
    for (int t = -10; t <= 9; ++t) { // -10 stands for the start, 0 does not exist
        if (t == 0)
            continue;
        const F steps = V::set1(t == -10 ? (float)-NMAX : -(NMAX + 0.1f * t));
        F inverse[VECTORS], sum_lx[VECTORS], sum_l2[VECTORS];
        for (int v = 0; v < VECTORS; ++v)
            inverse[v] = V::div(steps, max[v]), sum_lx[v] = sum_l2[v] = zero;
        for (int i = 0; i < N; ++i)
            for (int v = 0; v < VECTORS; ++v) {
                F l = rounded<V>(V::mul(inverse[v], V::load(b.x[i] + v * W)));
                l = V::max(V::min(l, high), low);
                sum_lx[v] = V::add(sum_lx[v], V::mul(V::load(wx[i] + v * W), l));
                sum_l2[v] = V::add(sum_l2[v], V::mul(V::mul(V::load(b.w[i] + v * W), l), l));
            }
        for (int v = 0; v < VECTORS; ++v) {
            const F fit = V::div(sum_lx[v], sum_l2[v]);
            if (t == -10) {
                scale[v] = V::sel(V::eq(sum_l2[v], zero), zero, fit);
                best[v] = V::mul(scale[v], sum_lx[v]);
                best_inverse[v] = inverse[v];
                continue;
            }
            const M better = V::mand(V::gt(sum_l2[v], zero), V::gt(V::mul(sum_lx[v], sum_lx[v]),
                                                                   V::mul(best[v], sum_l2[v])));
            scale[v] = V::sel(better, fit, scale[v]);
            best[v] = V::sel(better, V::mul(fit, sum_lx[v]), best[v]);
            best_inverse[v] = V::sel(better, inverse[v], best_inverse[v]);
        }
    }
    for (int v = 0; v < VECTORS; ++v)
        V::store(b.scale + v * W, V::sel(filled[v], scale[v], zero));
    for (int i = 0; i < N; ++i) {
        F l[VECTORS];
        for (int v = 0; v < VECTORS; ++v) {
            l[v] = rounded<V>(V::mul(best_inverse[v], V::load(b.x[i] + v * W)));
            l[v] = V::add(V::sub(V::max(V::min(l[v], high), low), low), V::set1(MAGIC));
            l[v] = V::sel(filled[v], l[v], V::set1(MAGIC));
        }
        b.take(i, l);
    }
}

// make_q3_quants with do_rmse: the start of the search above with weights x^2, then up to five
// sweeps in which a weight moves to another level if that raises the score. A sweep without a
// change ends the original's loop; here the other lanes may go on, and a lane at rest stays at
// rest, since the same sums give the same decisions.
template <int N, int NMAX>
struct ScaleDescent {
    Batch<N> &b;
    const int o; // the first of W lanes
    F sum_lx, sum_l2;

    void start(F max) {
        const F inverse = V::div(V::set1(-NMAX), max);
        sum_lx = sum_l2 = V::set1(0);
        for (int i = 0; i < N; ++i) {
            const F x = V::load(b.x[i] + o), w = V::mul(x, x);
            F l = rounded<V>(V::mul(inverse, x));
            l = V::max(V::min(l, V::set1(NMAX - 1)), V::set1(-NMAX));
            V::store(b.level[i] + o, l);
            sum_lx = V::add(sum_lx, V::mul(V::mul(w, x), l));
            sum_l2 = V::add(sum_l2, V::mul(V::mul(w, l), l));
        }
    }
    unsigned sweep() { // the lanes in which a weight moved
        const F zero = V::set1(0);
        unsigned moved = 0;
        for (int i = 0; i < N; ++i) {
            const F x = V::load(b.x[i] + o), l = V::load(b.level[i] + o);
            const F w = V::mul(x, x), wx = V::mul(w, x);
            F lx = V::sub(sum_lx, V::mul(wx, l)), l2 = V::sub(sum_l2, V::mul(V::mul(w, l), l));
            // so large at times that nearest_int wraps
            const I best = nearest_ints<V>(V::div(V::mul(x, l2), lx));
            const F m = V::tof(V::imax(V::imin(best, V::iset1(NMAX - 1)), V::iset1(-NMAX)));
            M better = V::mand(V::gt(lx, zero), V::mor(V::lt(m, l), V::gt(m, l)));
            lx = V::add(lx, V::mul(wx, m));
            l2 = V::add(l2, V::mul(V::mul(w, m), m));
            better = V::mand(better, V::gt(l2, zero));
            better = V::mand(
                better, V::gt(V::mul(V::mul(lx, lx), sum_l2), V::mul(V::mul(sum_lx, sum_lx), l2)));
            V::store(b.level[i] + o, V::sel(better, m, l));
            sum_lx = V::sel(better, lx, sum_lx);
            sum_l2 = V::sel(better, l2, sum_l2);
            moved |= V::bits(better);
        }
        return moved;
    }
};
template <int N, int NMAX>
__attribute__((noinline)) void descend_scales(Batch<N> &b) {
    const F zero = V::set1(0), magic = V::set1(MAGIC);
    for (int v = 0; v < VECTORS; ++v) {
        F max;
        const M filled = largest_of_blocks(b, v * W, &max);
        ScaleDescent<N, NMAX> descent = {b, v * W, zero, zero};
        descent.start(max);
        for (int sweep = 0; sweep < 5; ++sweep)
            if (!(descent.sweep() & V::bits(filled)))
                break;
        const F fit = V::div(descent.sum_lx, descent.sum_l2);
        const F scale = V::sel(V::gt(descent.sum_l2, zero), fit, zero);
        V::store(b.scale + v * W, V::sel(filled, scale, zero));
        for (int i = 0; i < N; ++i) { // an empty block has levels 0, not -NMAX
            const F l = V::add(V::load(b.level[i] + v * W), V::set1(NMAX + MAGIC));
            V::store(b.level[i] + v * W, V::sel(filled, l, magic));
        }
    }
    for (int i = 0; i < N; ++i) {
        const F l[VECTORS] = {V::load(b.level[i]), V::load(b.level[i] + W)};
        b.take(i, l);
    }
}
