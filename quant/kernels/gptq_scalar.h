// GPTQ of the scalar types: every scale near the one of ggml's encoder is tried, and with each of
// them the columns of a group are rounded one after the other. Numpy's form: scalar_coder.py.
//
// Five trials stand side by side: the sum of a column waits for one addition after the other, and
// five of them hide that. The errors of a trial are needed within it only, so the best trial is
// made once more at the end, instead of keeping all of them.
constexpr int STEPS = 5; // scale steps 0, -1, 1, -2, 2, of which the first of the best wins
constexpr float MOVES[STEPS] = {0, -1, 1, -2, 2};

struct Trial {
    F factor, base, inverse;
};

struct ScalarCoder {
    static constexpr int VECTORS = 1;
    const GptqScalar &type;
    GroupColumns one;
    int group;
    int64_t stride, number;
    alignas(64) float unit[MAX_GROUP][MAX_GROUP], diagonal[MAX_GROUP];
    F low, high;
    bool whole;
    V::T16 levels;
    F middle[15];

    ScalarCoder(const GptqScalar &t, int64_t stride_of_rows)
        : type(t), group(t.group), stride(stride_of_rows), number(0), whole(!t.levels) {
        low = V::set1((float)t.low), high = V::set1((float)t.high);
        const float none[16] = {};
        levels = V::tab16(whole ? none : t.levels);
        for (int k = 0; k < 15; ++k)
            middle[k] = V::set1(whole ? 0 : (t.levels[k] + t.levels[k + 1]) / 2);
    }
    void begin(const float *upper, int64_t size, int64_t group_number) {
        number = group_number;
        for (int j = 0; j < group; ++j) {
            diagonal[j] = upper[j * size + j];
            for (int i = 0; i < j; ++i)
                unit[i][j] = upper[i * size + j] / diagonal[j];
        }
    }
    // The value of a scale moved by some steps, for every lane: whole numbers, or halves by 2 %.
    INLINE F moved(const GptqScale &scale, F now, float move) {
        if (scale.whole)
            return V::max(V::min(V::add(now, V::set1(move)), V::set1((float)scale.high)),
                          V::set1((float)scale.low));
        float lanes[W];
        V::store(lanes, V::mul(now, V::set1(1 + 0.02f * move)));
        for (int k = 0; k < W; ++k)
            lanes[k] = from_half(to_half(lanes[k]));
        return V::load(lanes);
    }
    ALWAYS_INLINE I rounded_code(F v, F *level) const {
        if (whole) {
            const F r = rounded<V>(V::max(V::min(v, high), low));
            *level = r;
            return V::iadd(V::isub(V::asI(V::add(r, V::set1(MAGIC))), V::asI(V::set1(MAGIC))),
                           V::iset1(type.code_of_zero));
        }
        I code = V::iset1(0);
        for (int k = 0; k < 15; ++k)
            code = V::inc(code, V::ge(v, middle[k]));
        *level = V::lut16(levels, code);
        return code;
    }
    // Round the columns with N trials; errors and codes are those of the last one.
    template <int N, bool KEEP>
    INLINE void round_columns(const ScalarCoder &c, GroupColumns &columns, const Trial *trial,
                              F *loss, int64_t row) {
        alignas(64) float error[MAX_GROUP][N][W];
        for (int n = 0; n < N; ++n)
            loss[n] = V::set1(0);
        for (int k = 0; k < c.group; ++k) {
            F sum[N];
            for (int n = 0; n < N; ++n)
                sum[n] = V::set1(0);
            for (int i = 0; i < k; ++i) {
                const F unit = V::set1(c.unit[i][k]);
                for (int n = 0; n < N; ++n)
                    sum[n] = V::add(sum[n], V::mul(unit, V::load(error[i][n])));
            }
            const F weight = V::load(columns.weight[k]), target = V::load(columns.target[k]),
                    diagonal = V::set1(c.diagonal[k]);
            for (int n = 0; n < N; ++n) {
                const F goal = V::add(target, sum[n]);
                F level;
                const I code = c.rounded_code(
                    V::mul(V::sub(goal, trial[n].base), trial[n].inverse), &level);
                const F value = V::add(V::mul(level, trial[n].factor), trial[n].base);
                V::store(error[k][n], V::sub(weight, value));
                const F left = V::mul(V::sub(value, goal), diagonal);
                loss[n] = V::add(loss[n], V::mul(left, left));
                if (KEEP) {
                    V::store(columns.error[k], V::sub(weight, value));
                    int32_t lanes[W];
                    V::istore(lanes, code);
                    uint8_t *codes = c.type.codes + (c.number * c.group + k) * c.stride + row;
                    for (int lane = 0; lane < W; ++lane)
                        codes[lane] = (uint8_t)lanes[lane];
                }
            }
        }
    }
    GroupColumns &columns(int) { return one; }
    void choose(int64_t row, int) {
        GroupColumns &columns = one;
        const int64_t place = number * stride + row;
        const F zero = V::set1(0), one = V::set1(1);
        const F now = V::load(type.scale.value + place), half = V::load(type.scale.half + place);
        F min_value[STEPS], base[STEPS];
        for (int m = 0; m < STEPS; ++m)
            min_value[m] = base[m] = zero;
        if (type.with_min)
            for (int m = 0; m < STEPS; ++m) {
                min_value[m] = moved(type.min, V::load(type.min.value + place), MOVES[m]);
                base[m] = V::mul(V::set1((float)type.min.sign),
                                 V::mul(V::load(type.min.half + place), min_value[m]));
            }
        Trial trial[STEPS], best = {zero, zero, zero};
        F best_loss = zero, best_scale = now, best_min = min_value[0], loss[STEPS];
        bool first = true;
        const int rounds = type.with_min ? STEPS : 1;
        for (int round = 0; round < rounds; ++round) {
            F scale[STEPS];
            for (int n = 0; n < STEPS; ++n) {
                scale[n] = moved(type.scale, now, MOVES[type.with_min ? round : n]);
                const F factor = V::mul(half, scale[n]);
                const M some = V::mor(V::lt(factor, zero), V::gt(factor, zero));
                trial[n] = {factor, base[type.with_min ? n : 0],
                            V::sel(some, V::div(one, V::sel(some, factor, one)), zero)};
            }
            round_columns<STEPS, false>(*this, columns, trial, loss, row);
            for (int n = 0; n < STEPS; ++n) {
                const M better = V::lt(loss[n], best_loss);
                const F min = min_value[type.with_min ? n : 0];
                best_loss = first ? loss[n] : V::sel(better, loss[n], best_loss);
                best_scale = first ? scale[n] : V::sel(better, scale[n], best_scale);
                best_min = first ? min : V::sel(better, min, best_min);
                best.factor =
                    first ? trial[n].factor : V::sel(better, trial[n].factor, best.factor);
                best.base = first ? trial[n].base : V::sel(better, trial[n].base, best.base);
                best.inverse =
                    first ? trial[n].inverse : V::sel(better, trial[n].inverse, best.inverse);
                first = false;
            }
        }
        round_columns<1, true>(*this, columns, &best, loss, row);
        V::store(columns.loss, loss[0]);
        V::store(type.scale.value + place, best_scale);
        if (type.with_min)
            V::store(type.min.value + place, best_min);
    }
};

bool choose_scalar(const GptqStrip &strip, const GptqScalar &type) {
    ScalarCoder coder(type, strip.stride);
    solve_strip(strip, coder);
    return true;
}
