// Scores of rows of logits: one read for the largest logit, one for everything else, while the row
// is in the cache.
//
// Sums are float64 in 16 partial sums, which both instruction sets add in the same order, and exp
// is made of the same single operations: the bits do not depend on the processor.
constexpr int STEP = 16, VECTORS_OF_STEP = STEP / W;

// exp(x) for x <= 0 to about one unit in the last place; 0 below -87. NaN stays NaN.
INLINE F exponential(F x) {
    const F n = rounded<V>(V::mul(V::max(V::set1(-88), x), V::set1(1.44269504088896341f)));
    // x - n * ln 2, in two parts of ln 2 of which the first has few bits
    F r = V::sub(x, V::mul(n, V::set1(0.693359375f)));
    r = V::sub(r, V::mul(n, V::set1(-2.12194440e-4f)));
    F y = V::set1(1.9875691500e-4f);
    y = V::add(V::mul(y, r), V::set1(1.3981999507e-3f));
    y = V::add(V::mul(y, r), V::set1(8.3334519073e-3f));
    y = V::add(V::mul(y, r), V::set1(4.1665795894e-2f));
    y = V::add(V::mul(y, r), V::set1(1.6666665459e-1f));
    y = V::add(V::mul(y, r), V::set1(5.0000001201e-1f));
    y = V::add(V::add(V::mul(y, V::mul(r, r)), r), V::set1(1));
    const I exponent = V::isub(V::asI(V::add(n, V::set1(MAGIC))), V::asI(V::set1(MAGIC)));
    y = V::mul(y, V::asF(V::shl<23>(V::iadd(exponent, V::iset1(127)))));
    return V::sel(V::lt(x, V::set1(-87)), V::set1(0), y);
}

struct Sums {
    V::Sum part[VECTORS_OF_STEP];
    double total() const {
        double parts[STEP], sum = 0;
        for (int v = 0; v < VECTORS_OF_STEP; ++v)
            part[v].store(parts + v * W);
        for (int i = 0; i < STEP; ++i)
            sum += parts[i];
        return sum;
    }
};
// Calls step(v, offset, logits, p) for every vector of a row; the last ones are padded with logits
// that count for nothing. p may be null.
template <class Step>
INLINE void each_vector(const float *logits, const float *p, int64_t n, Step step) {
    int64_t i = 0;
    for (; i + STEP <= n; i += STEP)
        for (int v = 0; v < VECTORS_OF_STEP; ++v)
            step(v, V::load(logits + i + v * W), p ? V::load(p + i + v * W) : V::set1(0));
    if (i == n)
        return;
    float last[STEP], last_p[STEP];
    for (int k = 0; k < STEP; ++k) {
        last[k] = i + k < n ? logits[i + k] : -1e30f;
        last_p[k] = p && i + k < n ? p[i + k] : 0;
    }
    for (int v = 0; v < VECTORS_OF_STEP; ++v)
        step(v, V::load(last + v * W), V::load(last_p + v * W));
}
INLINE int64_t first_largest(const float *logits, int64_t n, float *largest) {
    F max[VECTORS_OF_STEP];
    for (int v = 0; v < VECTORS_OF_STEP; ++v)
        max[v] = V::set1(-__builtin_inff());
    each_vector(logits, nullptr, n,
                [&](int v, F x, F) __attribute__((always_inline)) { max[v] = V::max(x, max[v]); });
    float lanes[STEP];
    *largest = -__builtin_inff();
    for (int v = 0; v < VECTORS_OF_STEP; ++v)
        V::store(lanes + v * W, max[v]);
    for (int k = 0; k < STEP; ++k)
        *largest = lanes[k] > *largest ? lanes[k] : *largest;
    const F wanted = V::set1(*largest);
    int64_t i = 0;
    for (; i + W <= n; i += W) {
        const unsigned equal = V::bits(V::eq(V::load(logits + i), wanted));
        if (equal)
            return i + __builtin_ctz(equal);
    }
    for (; i < n; ++i)
        if (logits[i] == *largest)
            return i;
    return 0; // nothing but NaN
}
// The place of the largest logit, if it is the only one so large and no logit is NaN.
int64_t only_largest(const float *logits, int64_t n) {
    float largest;
    const int64_t place = first_largest(logits, n, &largest);
    const F wanted = V::set1(largest);
    I numbers = V::iset1(0), equal = V::iset1(0);
    each_vector(logits, nullptr, n, [&](int, F x, F) __attribute__((always_inline)) {
        numbers = V::inc(numbers, V::eq(x, x));
        equal = V::inc(equal, V::eq(x, wanted));
    });
    int32_t number_lanes[W], equal_lanes[W];
    V::istore(number_lanes, numbers);
    V::istore(equal_lanes, equal);
    int64_t all = 0, found = 0;
    for (int k = 0; k < W; ++k)
        all += number_lanes[k], found += equal_lanes[k];
    if (all != (n + STEP - 1) / STEP * STEP)
        return -1;
    return found == 1 ? place : -2;
}

// What is needed of a reference: p from its exponentials, which p holds, and their sum.
INLINE void finish_reference(const Scoring &s, int64_t row, const float *logits, float largest,
                             double sum) {
    float *p = s.p + row * s.vocabulary;
    const double log_sum = __builtin_log(sum);
    const F inverse = V::set1((float)(1 / sum)), least = V::set1((float)(log_sum - 16)),
            m = V::set1(largest);
    Sums total = {}, products = {};
    float *target = p;
    const int64_t n = s.vocabulary;
    int64_t written = 0;
    each_vector(logits, p, n, [&](int v, F x, F e) __attribute__((always_inline)) {
        const F shifted = V::sub(x, m);
        const F probability = V::sel(V::gt(shifted, least), V::mul(e, inverse), V::set1(0));
        total.part[v].add(probability);
        products.part[v].add(V::mul(probability, shifted));
        if (written + W <= n)
            V::store(target + written, probability);
        else {
            float rest[W];
            V::store(rest, probability);
            for (int k = 0; written + k < n; ++k)
                target[written + k] = rest[k];
        }
        written += W;
    });
    s.total[row] = total.total();
    s.log[row] = products.total() - log_sum * s.total[row];
}
bool score_rows(const Scoring &s) {
    const int64_t n = s.vocabulary;
    for (int64_t row = 0; row < s.rows; ++row) {
        const float *logits = s.logits + row * n;
        const float *p = s.kld ? s.p + row * n : nullptr;
        float *exponentials = s.p && !s.kld ? s.p + row * n : nullptr;
        float largest;
        s.top[row] = first_largest(logits, n, &largest);
        const F m = V::set1(largest);
        Sums sum = {}, products = {};
        int64_t written = 0;
        each_vector(logits, p, n, [&](int v, F x, F probability) __attribute__((always_inline)) {
            const F shifted = V::sub(x, m), e = exponential(shifted);
            sum.part[v].add(e);
            if (p)
                products.part[v].add(V::mul(probability, shifted));
            if (exponentials) {
                if (written + W <= n)
                    V::store(exponentials + written, e);
                else {
                    float rest[W];
                    V::store(rest, e);
                    for (int k = 0; written + k < n; ++k)
                        exponentials[written + k] = rest[k];
                }
                written += W;
            }
        });
        const double log_sum = __builtin_log(sum.total());
        s.nll[row] = log_sum - (double)(logits[s.targets[row]] - largest);
        if (p)
            s.kld[row] = s.log[row] - products.total() + log_sum * s.total[row];
        if (exponentials)
            finish_reference(s, row, logits, largest, sum.total());
    }
    return true;
}
