// The exact solution that iq1_s and iq1_m share: of all ways to split the sorted weights of a block
// in three groups (levels 0, 1, 2), each with one or several choices of shift, the one with the
// best score sum_qx^2 / sum_q2.
//
// The original walks all splits and keeps a running best, with sum_qx^2 > best * sum_q2 in floats
// and best = scale * sum_qx. Here lanes are splits. First a coarse pass gives a lower bound B of
// the best score. Then all splits are tested against B * (1 - 1.4e-5), and those that pass are
// replayed in the original order. That gives the same result if no score lies between B * (1
// - 1.4e-5) and B * (1 - 1e-5), a band many times wider than the rounding errors of a test (about
// 1e-7): whatever the original had accepted before the first replayed split is below the band, so
// it does not keep any split at B * (1 - 1e-5) or above from being accepted in its turn, and
// nothing below the band is accepted once such a split was. If a score does lie in the band, the
// block is replayed in full.
struct Split {
    int first, second; // levels are 0 before `first`, 1 before `second`, 2 after; -1: none found
    int shift;         // number of the choice of shifts
    float scale;
};

// Order of a block's weights: stable, as glibc's qsort is. Rank by comparisons: lanes are weights.
template <int N>
INLINE void sort_order(const float *x, int *order) {
    for (int a = 0; a < N; a += 8) {
        const __m256 own = Avx2::load(x + a);
        __m256i rank = Avx2::iset1(0);
        for (int j = 0; j < a; ++j)
            rank = Avx2::inc(rank, Avx2::le(Avx2::set1(x[j]), own));
        for (int j = a; j < a + 8; ++j) {
            const __m256 other = Avx2::set1(x[j]);
            rank = Avx2::inc(rank, Avx2::sel(Avx2::lanes_from(j - a + 1), Avx2::le(other, own),
                                             Avx2::lt(other, own)));
        }
        for (int j = a + 8; j < N; ++j)
            rank = Avx2::inc(rank, Avx2::lt(Avx2::set1(x[j]), own));
        alignas(32) int ranks[8];
        Avx2::istore(ranks, rank);
        for (int i = 0; i < 8; ++i)
            order[ranks[i]] = a + i;
    }
}

// scores(first) gives a function of (second, sum_qx, sum_q2) that computes W splits from `second`
// on for every choice of shifts; exact(first, second, shift, sum_qx, sum_q2) computes one as the
// original does.
template <int N, int SHIFTS, class Scores, class Exact>
struct SplitSearch {
    Scores scores;
    Exact exact;
    Split best;
    float best_score;

    ALWAYS_INLINE void consider(int first, int second, int shift, float qx, float q2) {
        if (!(q2 > 0 && qx * qx > best_score * q2))
            return;
        best = {first, second, shift, qx / q2};
        best_score = best.scale * qx;
    }
    ALWAYS_INLINE float lower_bound() { // of the best score; any split will do
        F best_n = V::set1(0), best_d = V::set1(1);
        for (int first = 1; first <= N; first += 3) {
            auto row = scores(first);
            for (int second = first; second <= N; second += W) {
                F qx[SHIFTS], q2[SHIFTS];
                row(second, qx, q2);
                for (int k = 0; k < SHIFTS; ++k) {
                    const F n = V::mul(qx[k], qx[k]);
                    const M better = V::gt(V::mul(n, best_d), V::mul(best_n, q2[k]));
                    best_n = V::sel(better, n, best_n);
                    best_d = V::sel(better, q2[k], best_d);
                }
            }
        }
        return -V::hmin(V::sub(V::set1(0), V::div(best_n, best_d)));
    }
    ALWAYS_INLINE bool replay_near(float bound) { // false: a score lies in the band
        const float low = bound * (1 - 1.4e-5f), high = bound * (1 - 1e-5f);
        const F low_v = V::set1(low);
        bool clear = true;
        for (int first = 0; first <= N; ++first) {
            auto row = scores(first);
            for (int second = first; second <= N; second += W) {
                F qx[SHIFTS], q2[SHIFTS];
                unsigned passed[SHIFTS];
                row(second, qx, q2);
                M any = V::gt(V::mul(qx[0], qx[0]), V::mul(low_v, q2[0]));
                passed[0] = V::bits(any);
                for (int k = 1; k < SHIFTS; ++k) {
                    const M pass = V::gt(V::mul(qx[k], qx[k]), V::mul(low_v, q2[k]));
                    passed[k] = V::bits(pass);
                    any = V::mor(any, pass);
                }
                for (unsigned left = V::bits(any); left; left &= left - 1) {
                    const int lane = __builtin_ctz(left);
                    if (second + lane > N)
                        break;
                    for (int k = 0; k < SHIFTS; ++k) {
                        if (!(passed[k] >> lane & 1))
                            continue;
                        float x, q;
                        exact(first, second + lane, k, &x, &q);
                        if (!(x * x >= high * q))
                            clear = false;
                        consider(first, second + lane, k, x, q);
                    }
                }
            }
        }
        return clear;
    }
    ALWAYS_INLINE void replay_all() {
        for (int first = 0; first <= N; ++first)
            for (int second = first; second <= N; ++second)
                for (int k = 0; k < SHIFTS; ++k) {
                    float qx, q2;
                    exact(first, second, k, &qx, &q2);
                    consider(first, second, k, qx, q2);
                }
    }
};
// max: the largest magnitude; sum_w: of all weights. The rounding errors above are relative ones:
// no product may overflow (|sum_qx| <= 1.125 * max * sum_w) or lose bits as a denormal (sum_q2 >=
// sum_w / 64, and sum_qx^2 of a split that matters is at least bound * sum_q2). Blocks beyond are
// replayed in full, where everything is as in the original.
template <int N, int SHIFTS, class Scores, class Exact>
INLINE Split best_split(Scores scores, Exact exact, float max, float sum_w) {
    const Split none = {-1, -1, -1, max};
    SplitSearch<N, SHIFTS, Scores, Exact> search = {scores, exact, none, -__FLT_MAX__};
    const float bound = search.lower_bound();
    const bool normal = bound > 1e-30f && bound < 1e30f && sum_w > 1e-34f &&
                        bound * sum_w > 1e-34f && max * sum_w < 1e18f;
    if (normal && search.replay_near(bound))
        return search.best;
    search.best = none;
    search.best_score = -__FLT_MAX__;
    search.replay_all();
    return search.best;
}

// ---- what both types do with a split

// The values of levels 0, 1, 2 with a shift of +1/8 and of -1/8; the fourth is padding.
static const float SHIFTED_UP[4] = {-0.875f, 0.125f, 1.125f, 1.125f},
                   SHIFTED_DOWN[4] = {-1.125f, -0.125f, 0.875f, 0.875f};

INLINE float largest_magnitude(const float *x, int n) {
    float max = 0;
    for (int i = 0; i < n; ++i)
        max = max > absolute(x[i]) ? max : absolute(x[i]);
    return max;
}
// Levels in the order of the weights.
template <int N>
INLINE void levels_of_split(const Split &split, const int *order, int8_t *levels) {
    for (int j = 0; j < N; ++j)
        levels[order[j]] = (int8_t)(j < split.first ? 0 : j < split.second ? 1 : 2);
}
// The codeword of 8 levels, searched among candidates if they are not one. all: false once a search
// was needed. -1: none.
INLINE int ternary_codeword(const Codebook &book, const int8_t *levels, const float *x,
                            const float *w, float scale, const float *values, bool *all) {
    int point = 0;
    for (int i = 7; i >= 0; --i)
        point = 3 * point + levels[i];
    const CandidateList list = book.candidates[FULL].of_point[point];
    if (!list.count)
        return book.index_of_point[point];
    *all = false;
    alignas(32) float terms[64];
    level_terms<8>(x, w, scale, Avx2::tab4(values), terms);
    const Best best = search_list8(book.candidates[FULL].packed + list.packed, list.vectors, terms);
    return best.distance < __FLT_MAX__ ? codeword_of(book, 8, levels_from_nibbles(best.item)) : -1;
}
