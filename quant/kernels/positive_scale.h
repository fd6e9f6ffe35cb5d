// make_qp_quants: a scale for values of which most are positive, levels 0 ... top. For the scales
// and minimums of a super-block (q2_K, q4_K, q5_K) and for the start of iq2_xxs.

// The first trial keeps its levels unclamped, as bytes: -1 is 255. Then eight trials of other
// scales, one per lane.
template <int N>
INLINE float best_inverse_scale(int top, float max, const float *x, const float *w) {
    alignas(64) float error[N];
    float inverse = top / max, best = 0;
    const float scale = 1 / inverse;
    for (int i = 0; i < N; i += 8) {
        const __m256 xv = Avx2::load(x + i);
        const __m256i l =
            Avx2::iand(Avx2::asI(Avx2::add(Avx2::mul(Avx2::set1(inverse), xv), Avx2::set1(MAGIC))),
                       Avx2::iset1(255));
        const __m256 d = Avx2::sub(xv, Avx2::mul(Avx2::set1(scale), Avx2::tof(l)));
        Avx2::store(error + i, Avx2::mul(Avx2::mul(Avx2::load(w + i), d), d));
    }
    for (int i = 0; i < N; ++i)
        best += error[i];
    static const float step[8] = {-4, -3, -2, -1, 1, 2, 3, 4};
    const __m256 topv = Avx2::set1((float)top);
    const __m256 inverses =
        Avx2::div(Avx2::add(Avx2::mul(Avx2::set1(0.1f), Avx2::load(step)), topv), Avx2::set1(max));
    const __m256 scales = Avx2::div(Avx2::set1(1), inverses);
    __m256 sum = Avx2::set1(0);
    for (int i = 0; i < N; ++i) {
        const __m256 xv = Avx2::set1(x[i]),
                     l = Avx2::min(rounded<Avx2>(Avx2::mul(inverses, xv)), topv);
        const __m256 d = Avx2::sub(xv, Avx2::mul(scales, l));
        sum = Avx2::add(sum, Avx2::mul(Avx2::mul(Avx2::set1(w[i]), d), d));
    }
    alignas(32) float errors[8], all_inverses[8];
    Avx2::store(errors, sum);
    Avx2::store(all_inverses, inverses);
    for (int t = 0; t < 8; ++t)
        if (errors[t] < best)
            best = errors[t], inverse = all_inverses[t];
    return inverse;
}

// Up to five sweeps in which a weight moves to the level that fits best to the scale of all others,
// if the score sum_lx^2 / sum_l2 rises. Eight weights are tried at once against the same sums; the
// first that moves changes the sums, so those after it are tried again.
template <int N>
struct Descent {
    alignas(64) float level[N], wx[N];
    float sum_lx, sum_l2;
    bool sweep(int top, const float *x, const float *w) {
        bool changed = false;
        for (int i = 0; i < N; i += 8) {
            const __m256 xv = Avx2::load(x + i), wv = Avx2::load(w + i), wxv = Avx2::load(wx + i),
                         zero = Avx2::set1(0);
            for (int from = 0; from < 8;) {
                const __m256 l = Avx2::load(level + i), lx = Avx2::set1(sum_lx),
                             l2 = Avx2::set1(sum_l2);
                const __m256 others_lx = Avx2::sub(lx, Avx2::mul(wxv, l));
                const __m256 others_l2 = Avx2::sub(l2, Avx2::mul(Avx2::mul(wv, l), l));
                const __m256i moved =
                    Avx2::imin(nearest_ints<Avx2>(Avx2::div(Avx2::mul(xv, others_l2), others_lx)),
                               Avx2::iset1(top));
                const __m256 m = Avx2::tof(moved);
                const __m256 new_lx = Avx2::add(others_lx, Avx2::mul(wxv, m));
                const __m256 new_l2 = Avx2::add(others_l2, Avx2::mul(Avx2::mul(wv, m), m));
                const __m256 better = Avx2::gt(Avx2::mul(Avx2::mul(new_lx, new_lx), l2),
                                               Avx2::mul(Avx2::mul(lx, lx), new_l2));
                const __m256 valid =
                    Avx2::mand(Avx2::gt(others_lx, zero), Avx2::gt(others_l2, zero));
                const unsigned left = 0xffu << from & 0xff & ~Avx2::bits(Avx2::eq(m, l));
                const unsigned moves = Avx2::bits(Avx2::mand(valid, better)) & left;
                if (!moves)
                    break;
                const int j = __builtin_ctz(moves);
                alignas(32) float lxs[8], l2s[8];
                alignas(32) int levels[8];
                Avx2::store(lxs, new_lx);
                Avx2::store(l2s, new_l2);
                Avx2::istore(levels, moved);
                sum_lx = lxs[j];
                sum_l2 = l2s[j];
                level[i + j] = (float)(uint8_t)levels[j];
                changed = true;
                from = j + 1;
            }
        }
        return changed;
    }
};

// Returns the scale. The caller has excluded that a trial wraps nearest_int (see positive_scale).
template <int N>
INLINE float fit_positive(int top, const float *x, const float *w, uint8_t *levels) {
    float low, max;
    extent<N>(x, &low, &max);
    if (!(max >= EMPTY)) {
        memset(levels, 0, N);
        return 0.f;
    }
    const float inverse = best_inverse_scale<N>(top, max, x, w);
    alignas(64) float lx[N], l2[N];
    Descent<N> s;
    for (int i = 0; i < N; i += 8) {
        const __m256 xv = Avx2::load(x + i), wv = Avx2::load(w + i), wxv = Avx2::mul(wv, xv);
        const __m256 l =
            Avx2::min(rounded<Avx2>(Avx2::mul(Avx2::set1(inverse), xv)), Avx2::set1((float)top));
        Avx2::store(s.wx + i, wxv);
        Avx2::store(lx + i, Avx2::mul(wxv, l));
        Avx2::store(l2 + i, Avx2::mul(Avx2::mul(wv, l), l));
        Avx2::store(s.level + i, Avx2::tof(Avx2::iand(Avx2::asI(Avx2::add(l, Avx2::set1(MAGIC))),
                                                      Avx2::iset1(255))));
    }
    s.sum_lx = s.sum_l2 = 0;
    for (int i = 0; i < N; ++i)
        s.sum_lx += lx[i], s.sum_l2 += l2[i];
    for (int sweep = 0; sweep < 5; ++sweep)
        if (!s.sweep(top, x, w))
            break;
    for (int i = 0; i < N; ++i)
        levels[i] = (uint8_t)(int)s.level[i];
    return s.sum_l2 > 0.0f ? s.sum_lx / s.sum_l2 : 0.0f;
}
// For scales and minimums of sub-blocks; false where a trial would wrap nearest_int.
template <int N>
INLINE bool positive_scale(int top, const float *x, const float *w, uint8_t *levels, float *scale) {
    float low, high;
    extent<N>(x, &low, &high);
    if (high >= EMPTY && low * ((top + 1) / high) < -4e6f)
        return false;
    *scale = fit_positive<N>(top, x, w, levels);
    return true;
}
