// GPTQ of the types with codewords: eight columns at a time, codewords and signs (or a shift) of
// the least loss, with every scale near the one of ggml's encoder. Numpy's form: codebook_coder.py
// and codebook_search.py.
//
// The loss of values x for targets t is (t - x) R RT (t - x)T; with M = R RT and x = f * s * w
// (factor, signs, codeword) it is, but for what does not depend on w,
//     f^2 * (s*w M (s*w)T - 2/f * (t M) (s*w)T).
// The first term depends on signs and codeword only: a table for all rows. The second is a product
// of the codeword with eight numbers of the row. All codewords are scanned, with rows in lanes
// (gptq_scan.h). Each step is made for many rows and all trials before the next, so that rows with
// the same signs can be brought together. A search after a change of signs is made only for the
// rows whose signs changed.

// A scale and a shift for all columns of a group, and what is found with them. doubled: 2 / factor.
struct CodebookTrial {
    F factor, doubled, loss;
    I scale;
    int down;
    unsigned lanes; // to search
    F target[8];    // of the octet in work
    Found found[MAX_GROUP / 8];
};
constexpr int MAX_TRIALS = 6;
struct RowVector {
    GroupColumns columns;
    CodebookTrial trials[MAX_TRIALS];
};

struct CodebookCoder {
    static constexpr int VECTORS = 512 / W;
    const GptqCodebook &type;
    Codewords codewords;
    int group, octets, trials, vectors;
    int64_t stride, number;
    RowVector *vector;
    void *queues;
    float *squares;
    alignas(64) float upper[MAX_GROUP][MAX_GROUP];
    Octet octet[MAX_GROUP / 8];

    static int64_t scratch(const GptqCodebook &t) {
        const int64_t aligned = VECTORS * sizeof(RowVector) + sizeof(PatternQueues<8>) + 64;
        return aligned / sizeof(float) + t.group / t.dims * squares_count(t) +
               Codewords::memory(t);
    }
    CodebookCoder(const GptqCodebook &t, int64_t stride_of_rows)
        : type(t), codewords(), group(t.group), octets(t.group / 8), trials(t.shifted ? 6 : 3),
          vectors(0), stride(stride_of_rows), number(0) {
        vector = (RowVector *)(((uintptr_t)t.scratch + 63) & ~(uintptr_t)63);
        queues = vector + VECTORS;
        squares = (float *)((char *)queues + sizeof(PatternQueues<8>));
        codewords.fill(t, squares + group / t.dims * squares_count(t));
    }
    GroupColumns &columns(int v) { return vector[v].columns; }
    void begin(const float *r, int64_t size, int64_t group_number) {
        number = group_number;
        for (int i = 0; i < group; ++i)
            for (int j = 0; j < group; ++j)
                upper[i][j] = r[i * size + j];
        float *table = squares;
        for (int o = 0; o < octets; ++o, table += 8 / type.dims * squares_count(type))
            octet[o].fill(type, codewords, r + 8 * o * (size + 1), size, table);
    }
    // The scales and shifts to try; the first is the one of now.
    INLINE void begin_trials(const GptqCodebook &type, int64_t place, CodebookTrial *trials) {
        const F d = V::load(type.d + place), zero = V::set1(0), one = V::set1(1);
        const I now = V::iload(type.scale + place), most = V::iset1(type.most_scale);
        static const int moves[] = {0, -1, 1};
        for (int move : moves)
            for (int down = 0; down <= (type.shifted != 0); ++down) {
                CodebookTrial &trial = *trials++;
                trial.scale = V::imax(V::imin(V::iadd(now, V::iset1(move)), most), V::iset1(0));
                const F odd = V::add(V::mul(V::set1(2), V::tof(trial.scale)), one);
                trial.factor = V::mul(V::mul(d, odd), V::set1(type.unit));
                const M some = V::mor(V::lt(trial.factor, zero), V::gt(trial.factor, zero));
                const F half = V::sel(some, V::mul(trial.factor, V::set1(0.5f)), one);
                trial.doubled = V::sel(some, V::div(one, half), zero);
                trial.loss = zero, trial.down = down;
            }
    }
    // Targets of eight columns: their weights, and what the columns before them ask for.
    INLINE void set_targets(const CodebookCoder &c, const GroupColumns &columns, int number,
                            CodebookTrial &trial) {
        F correction[8];
        for (int k = 0; k < 8; ++k) {
            const int column = 8 * number + k;
            const F weight = V::load(columns.weight[column]);
            F sum = V::mul(V::sub(V::load(columns.target[column]), weight),
                           V::set1(c.upper[column][column]));
            for (int i = 0; i < 8 * number; ++i)
                sum = V::add(sum, V::mul(V::set1(c.upper[i][column]),
                                         V::sub(V::load(columns.weight[i]),
                                                trial.found[i / 8].value[i % 8])));
            correction[k] = sum;
        }
        for (int k = 0; k < 8; ++k) {
            F sum = V::set1(0);
            for (int j = 0; j <= k; ++j)
                sum = V::add(sum,
                             V::mul(V::set1(c.octet[number].inverse[j][k]), correction[j]));
            trial.target[k] = V::add(V::load(columns.weight[8 * number + k]), sum);
        }
    }
    // Signs of the columns of part p by their bits; 1 where bits are shifts.
    template <int DIMS>
    INLINE void signs_of(const CodebookCoder &c, int p, const Found &found, F *sign) {
        const I bits = V::iload(found.bits);
        for (int k = 0; k < DIMS; ++k) {
            const M negative = V::ne(V::iand(bits, V::iset1(1 << (p * DIMS + k))), V::iset1(0));
            sign[k] = c.type.shifted ? V::set1(1) : V::sel(negative, V::set1(-1), V::set1(1));
        }
    }
    // Have the codewords of part p searched for goals, in the trial's lanes.
    template <int DIMS>
    INLINE void ask(CodebookCoder &c, const Squares &squares, int p, const F *goal,
                    const CodebookTrial &trial, Found &found) {
        const int mask = c.type.shifted ? 1 : (1 << DIMS) - 1, at = c.type.shifted ? 0 : p * DIMS;
        alignas(64) float slope[DIMS][W];
        F sign[DIMS];
        signs_of<DIMS>(c, p, found, sign);
        for (int k = 0; k < DIMS; ++k) {
            F sum = V::set1(0);
            for (int j = 0; j < DIMS; ++j)
                sum = V::add(sum, V::mul(V::set1(squares.metric[k][j]), goal[j]));
            V::store(slope[k], V::mul(V::mul(sum, trial.doubled), sign[k]));
        }
        PatternQueues<DIMS> &queues = *(PatternQueues<DIMS> *)c.queues;
        for (unsigned lanes = trial.lanes; lanes; lanes &= lanes - 1) {
            const int lane = __builtin_ctz(lanes);
            const int pattern = squares.number_of(found.bits[lane] >> at & mask);
            int32_t *slot = found.slot[p] + lane;
            queues.add(c.codewords, pattern, slope, squares.of(pattern), lane, slot);
        }
    }
    // The values of part p, of all lanes.
    template <int DIMS>
    INLINE void set_values(const CodebookCoder &c, int p, F factor, Found &found) {
        alignas(64) float level[DIMS][W];
        for (int lane = 0; lane < W; ++lane)
            for (int k = 0; k < DIMS; ++k)
                level[k][lane] = c.codewords.row[found.slot[p][lane] * DIMS + k];
        const F shift = V::set1(c.type.shift);
        const M down = V::ne(V::iload(found.bits), V::iset1(0));
        const F moved = c.type.shifted ? V::sel(down, V::sub(V::set1(0), shift), shift)
                                       : V::set1(0);
        F sign[DIMS];
        signs_of<DIMS>(c, p, found, sign);
        for (int k = 0; k < DIMS; ++k)
            found.value[p * DIMS + k] =
                V::mul(V::add(V::mul(V::load(level[k]), sign[k]), moved), factor);
    }
    // Codewords of an octet in the trials' lanes, with the signs of the goals or given ones.
    template <int DIMS>
    INLINE void search(CodebookCoder &c, int number, bool signs_given) {
        const Octet &o = c.octet[number];
        PatternQueues<DIMS> &queues = *(PatternQueues<DIMS> *)c.queues;
        for (int p = 0; p < 8 / DIMS; ++p) {
            queues.clear();
            for (int v = 0; v < c.vectors; ++v)
                for (int t = 0; t < c.trials; ++t) {
                    CodebookTrial &trial = c.vector[v].trials[t];
                    Found &found = trial.found[number];
                    F goal[DIMS];
                    part_goals(o, p * DIMS, DIMS, trial.target, found.value, goal);
                    if (!signs_given)
                        add_signs(goal, DIMS, p * DIMS, trial.factor, found.bits);
                    ask<DIMS>(c, o.squares[p], p, goal, trial, found);
                }
            queues.flush(c.codewords, sign_patterns(c.type));
            for (int v = 0; v < c.vectors; ++v)
                for (int t = 0; t < c.trials; ++t) {
                    CodebookTrial &trial = c.vector[v].trials[t];
                    set_values<DIMS>(c, p, trial.factor, trial.found[number]);
                }
        }
    }
    // Codewords and signs or shifts of an octet, for every row and trial.
    template <int DIMS>
    INLINE void choose_octet(CodebookCoder &c, int number) {
        const Octet &o = c.octet[number];
        for (int v = 0; v < c.vectors; ++v)
            for (int t = 0; t < c.trials; ++t) {
                CodebookTrial &trial = c.vector[v].trials[t];
                set_targets(c, c.vector[v].columns, number, trial);
                trial.lanes = (1u << W) - 1;
                V::istore(trial.found[number].bits, V::iset1(trial.down));
            }
        search<DIMS>(c, number, c.type.shifted != 0);
        if (c.type.even) {
            for (int v = 0; v < c.vectors; ++v)
                for (int t = 0; t < c.trials; ++t) {
                    CodebookTrial &trial = c.vector[v].trials[t];
                    trial.lanes = make_even(o, trial.target, trial.found[number]);
                }
            search<DIMS>(c, number, true);
        }
        for (int v = 0; v < c.vectors; ++v)
            add_losses<DIMS>(c, o, number, c.vector[v].trials);
    }
    // Add the octet's losses to the trials; where it has a shift of its own, of its better one.
    template <int DIMS>
    INLINE void add_losses(const CodebookCoder &c, const Octet &o, int number,
                           CodebookTrial *trials) {
        const int together = c.type.shifted == 8 ? 2 : 1;
        for (int t = 0; t < c.trials; t += together) {
            CodebookTrial &trial = trials[t];
            F loss = loss_of(o, trial.target, trial.found[number].value);
            if (together == 2) {
                CodebookTrial &down = trials[t + 1];
                const F down_loss = loss_of(o, down.target, down.found[number].value);
                const M better = V::lt(down_loss, loss);
                take<DIMS>(better, down.found[number], trial.found[number]);
                down.found[number] = trial.found[number];
                loss = V::sel(better, down_loss, loss);
                down.loss = V::add(down.loss, loss);
            }
            trial.loss = V::add(trial.loss, loss);
        }
    }
    // Put `other` into some lanes of `found`.
    template <int DIMS>
    INLINE void take(M lanes, const Found &other, Found &found) {
        for (int k = 0; k < 8; ++k)
            found.value[k] = V::sel(lanes, other.value[k], found.value[k]);
        for (int p = 0; p < 8 / DIMS; ++p)
            V::istore(found.slot[p],
                      V::seli(lanes, V::iload(other.slot[p]), V::iload(found.slot[p])));
        V::istore(found.bits, V::seli(lanes, V::iload(other.bits), V::iload(found.bits)));
    }
    // Keep the trial of the least loss.
    template <int DIMS>
    INLINE void keep_best(CodebookCoder &c, RowVector &vector, int64_t row) {
        CodebookTrial &best = vector.trials[0];
        for (int t = 1; t < c.trials; ++t) {
            const CodebookTrial &trial = vector.trials[t];
            const M better = V::lt(trial.loss, best.loss);
            best.scale = V::seli(better, trial.scale, best.scale);
            best.loss = V::sel(better, trial.loss, best.loss);
            for (int o = 0; o < c.octets; ++o)
                take<DIMS>(better, trial.found[o], best.found[o]);
        }
        write<DIMS>(c, best, vector.columns, row);
    }
    template <int DIMS>
    INLINE void write(CodebookCoder &c, const CodebookTrial &best, GroupColumns &columns,
                      int64_t row) {
        const GptqCodebook &type = c.type;
        V::store(columns.loss, best.loss);
        V::istore(type.scale + c.number * c.stride + row, best.scale);
        for (int o = 0; o < c.octets; ++o) {
            const Found &found = best.found[o];
            const int64_t eight = c.number * c.octets + o;
            for (int k = 0; k < 8; ++k)
                V::store(columns.error[8 * o + k],
                         V::sub(V::load(columns.weight[8 * o + k]), found.value[k]));
            V::istore(type.bits + eight * c.stride + row, V::iload(found.bits));
            for (int p = 0; p < 8 / DIMS; ++p)
                for (int lane = 0; lane < W; ++lane)
                    type.index[(eight * (8 / DIMS) + p) * c.stride + row + lane] =
                        c.codewords.word[found.slot[p][lane]];
        }
    }
    template <int DIMS>
    INLINE void choose_group(CodebookCoder &c, int64_t row) {
        for (int v = 0; v < c.vectors; ++v)
            begin_trials(c.type, c.number * c.stride + row + v * W, c.vector[v].trials);
        for (int o = 0; o < c.octets; ++o)
            choose_octet<DIMS>(c, o);
        for (int v = 0; v < c.vectors; ++v)
            keep_best<DIMS>(c, c.vector[v], row + v * W);
    }
    void choose(int64_t row, int count) {
        vectors = count;
        if (type.dims == 8)
            choose_group<8>(*this, row);
        else
            choose_group<4>(*this, row);
    }
};

bool choose_codewords(const GptqStrip &strip, const GptqCodebook &type) {
    CodebookCoder coder(type, strip.stride);
    solve_strip(strip, coder);
    return true;
}
