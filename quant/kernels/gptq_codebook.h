// GPTQ of the types with codewords: eight columns at a time, codewords and signs (or a shift) of
// the least loss, with every scale near the one of ggml's encoder. Numpy's form: codebook_coder.py
// and codebook_search.py.
//
// The loss of values x for targets t is (t - x) R RT (t - x)T; with M = R RT and x = f * s * w
// (factor, signs, codeword) it is, but for what does not depend on w,
//     f^2 * (s*w M (s*w)T - 2/f * (t M) (s*w)T).
// The first term depends on signs and codeword only: a table for all rows. The second is a product
// of the codeword with eight numbers of the row. So candidates stand in lanes, and all codewords
// are scanned (gptq_codewords.h). A search after a change of signs is made only for the rows whose
// signs changed.
//

// Eight columns of a group: R, its inverse, M = R RT, and the same of each codeword's columns.
struct Octet {
    float upper[8][8], inverse[8][8], metric[8][8];
    float part_inverse[8][8]; // of the diagonal blocks of a codeword's columns
    Squares squares[2];       // of each codeword
};
static void invert(const float (*upper)[8], int first, int end, float (*inverse)[8]) {
    for (int j = first; j < end; ++j) {
        double column[8];
        for (int i = j; i >= first; --i) {
            double sum = i == j;
            for (int k = i + 1; k <= j; ++k)
                sum -= (double)upper[i][k] * column[k];
            column[i] = sum / upper[i][i];
            inverse[i][j] = (float)column[i];
        }
    }
}
// m = rows first ... end of R times its transpose
static void multiply(const float (*upper)[8], int first, int end, float (*m)[8]) {
    for (int i = first; i < end; ++i)
        for (int j = first; j < end; ++j) {
            double sum = 0;
            for (int k = i > j ? i : j; k < end; ++k)
                sum += (double)upper[i][k] * upper[j][k];
            m[i][j] = (float)sum;
        }
}

// What is found for eight columns of the rows of a vector.
struct Found {
    F value[8];
    alignas(64) int32_t word[2][W], bits[W];
};

constexpr unsigned EVERY = (1u << W) - 1;
struct CodebookCoder {
    const GptqCodebook &type;
    Codewords codewords;
    int group, octets, parts, patterns;
    int64_t stride, number;
    alignas(64) float upper[MAX_GROUP][MAX_GROUP];
    Octet octet[MAX_GROUP / 8];

    CodebookCoder(const GptqCodebook &t, int64_t stride_of_rows)
        : type(t), codewords(), group(t.group), octets(t.group / 8), parts(8 / t.dims),
          patterns(sign_patterns(t)), stride(stride_of_rows), number(0) {
        // behind the squares
        codewords.row = t.scratch + (int64_t)parts * octets * patterns * t.words;
        codewords.pair = (int32_t *)(codewords.row + (int64_t)t.words * t.dims);
        codewords.fill(t);
    }
    void begin(const float *r, int64_t size, int64_t group_number) {
        number = group_number;
        for (int i = 0; i < group; ++i)
            for (int j = 0; j < group; ++j)
                upper[i][j] = r[i * size + j];
        float *table = type.scratch;
        for (int o = 0; o < octets; ++o) {
            Octet &mine = octet[o];
            for (int i = 0; i < 8; ++i)
                for (int j = 0; j < 8; ++j)
                    mine.upper[i][j] = upper[8 * o + i][8 * o + j];
            invert(mine.upper, 0, 8, mine.inverse);
            multiply(mine.upper, 0, 8, mine.metric);
            for (int p = 0; p < parts; ++p, table += (int64_t)patterns * type.words) {
                const int first = p * type.dims, end = first + type.dims;
                Squares &s = mine.squares[p];
                s.type = &type, s.dims = type.dims, s.patterns = patterns, s.table = table;
                invert(mine.upper, first, end, mine.part_inverse);
                float metric[8][8];
                multiply(mine.upper, first, end, metric);
                for (int i = 0; i < type.dims; ++i)
                    for (int j = 0; j < type.dims; ++j)
                        s.metric[i][j] = metric[first + i][first + j];
                s.fill();
            }
        }
    }
    // Codewords of part p for goals, with the signs (or shift) of the bits, in the given lanes; the
    // values of all lanes.
    template <int DIMS>
    INLINE void nearest(const CodebookCoder &c, const Octet &o, int p, const F *goal, F factor,
                        F doubled, unsigned lanes, Found &found) {
        const bool shifted = c.type.shifted;
        const Squares &squares = o.squares[p];
        const int first = p * DIMS, mask = shifted ? 1 : (1 << DIMS) - 1, at = shifted ? 0 : first;
        const I bits = V::iload(found.bits);
        const F one = V::set1(1), minus = V::set1(-1);
        alignas(64) float slope[DIMS][W], value[DIMS][W];
        F sign[DIMS];
        for (int k = 0; k < DIMS; ++k) {
            const M negative = V::ne(V::iand(bits, V::iset1(1 << (first + k))), V::iset1(0));
            sign[k] = shifted ? one : V::sel(negative, minus, one);
            F sum = V::set1(0);
            for (int j = 0; j < DIMS; ++j)
                sum = V::add(sum, V::mul(V::set1(squares.metric[k][j]), goal[j]));
            V::store(slope[k], V::mul(V::mul(sum, doubled), sign[k]));
        }
        while (lanes) {
            int lane[2], words[2];
            const float *square[2];
            for (int q = 0; q < 2; ++q) {
                lane[q] = lanes ? __builtin_ctz(lanes) : lane[0];
                lanes &= lanes - 1;
                square[q] = Squares::of(squares, found.bits[lane[q]] >> at & mask);
            }
            scan<DIMS>(c.type, c.codewords, square, slope, lane, words);
            for (int q = 0; q < 2; ++q)
                found.word[p][lane[q]] = words[q];
        }
        for (int lane = 0; lane < W; ++lane)
            for (int k = 0; k < DIMS; ++k)
                value[k][lane] = c.codewords.row[found.word[p][lane] * DIMS + k];
        const F shift = V::set1(c.type.shift);
        const F moved = shifted ? V::sel(V::ne(bits, V::iset1(0)), V::sub(V::set1(0), shift), shift)
                                : V::set1(0);
        for (int k = 0; k < DIMS; ++k)
            found.value[first + k] =
                V::mul(V::add(V::mul(V::load(value[k]), sign[k]), moved), factor);
    }
    // Goals of part p: the targets, corrected for the codeword before it.
    INLINE void part_goals(const CodebookCoder &c, const Octet &o, int p, const F *target,
                           const F *value, F *goal) {
        const int first = p * c.type.dims, end = first + c.type.dims;
        F carried[8];
        for (int k = first; k < end; ++k) {
            carried[k] = V::set1(0);
            for (int i = 0; i < first; ++i)
                carried[k] = V::add(carried[k], V::mul(V::set1(o.upper[i][k]),
                                                       V::sub(target[i], value[i])));
        }
        for (int k = first; k < end; ++k) {
            F sum = V::set1(0);
            for (int j = first; j <= k; ++j)
                sum = V::add(sum, V::mul(V::set1(o.part_inverse[j][k]), carried[j]));
            goal[k - first] = first ? V::add(target[k], sum) : target[k];
        }
    }
    INLINE void add_signs(const F *goal, int count, int first, F factor, int32_t *bits) {
        I signs = V::iload(bits);
        for (int k = 0; k < count; ++k) {
            const M negative = V::lt(V::mul(goal[k], factor), V::set1(0));
            signs = V::seli(negative, V::ior(signs, V::iset1(1 << (first + k))), signs);
        }
        V::istore(bits, signs);
    }
    template <int DIMS>
    INLINE void search(const CodebookCoder &c, const Octet &o, const F *target, F factor,
                       F doubled, bool signs_given, unsigned lanes, Found &found) {
        for (int p = 0; p < 8 / DIMS; ++p) {
            F goal[DIMS];
            part_goals(c, o, p, target, found.value, goal);
            if (!signs_given)
                add_signs(goal, DIMS, p * DIMS, factor, found.bits);
            nearest<DIMS>(c, o, p, goal, factor, doubled, lanes, found);
        }
    }
    // Where the number of minus signs is odd, the sign whose change adds least to the loss changes;
    // returns those lanes.
    INLINE unsigned make_even(const Octet &o, const F *target, Found &found) {
        F least = V::set1(0);
        I flip = V::iset1(0);
        for (int i = 0; i < 8; ++i) {
            F left = V::set1(0);
            for (int j = 0; j < 8; ++j)
                left = V::add(left, V::mul(V::set1(o.metric[i][j]),
                                           V::sub(target[j], found.value[j])));
            const F v = found.value[i];
            const F cost = V::mul(v, V::add(left, V::mul(v, V::set1(o.metric[i][i]))));
            const M better = V::lt(cost, least);
            least = i ? V::sel(better, cost, least) : cost;
            flip = i ? V::seli(better, V::iset1(1 << i), flip) : V::iset1(1);
        }
        int32_t flips[W];
        V::istore(flips, flip);
        unsigned odd = 0;
        for (int lane = 0; lane < W; ++lane)
            if (__builtin_parity((unsigned)found.bits[lane]))
                found.bits[lane] ^= flips[lane], odd |= 1u << lane;
        return odd;
    }
    INLINE F loss_of(const Octet &o, const F *target, const F *value) {
        F loss = V::set1(0);
        for (int j = 0; j < 8; ++j) {
            F left = V::set1(0);
            for (int i = 0; i <= j; ++i)
                left = V::add(left,
                              V::mul(V::set1(o.upper[i][j]), V::sub(target[i], value[i])));
            loss = V::add(loss, V::mul(left, left));
        }
        return loss;
    }
    // Codewords and signs or shifts of eight columns; `down`: of a shift that the group shares.
    template <int DIMS>
    INLINE F eight_columns(const CodebookCoder &c, const Octet &o, const F *target, F factor,
                           F doubled, bool down, Found &found) {
        for (int lane = 0; lane < W; ++lane)
            found.bits[lane] = down;
        search<DIMS>(c, o, target, factor, doubled, c.type.shifted != 0, EVERY, found);
        if (c.type.even)
            if (const unsigned odd = make_even(o, target, found))
                search<DIMS>(c, o, target, factor, doubled, true, odd, found);
        F loss = loss_of(o, target, found.value);
        if (c.type.shifted == 8) {
            Found other;
            for (int lane = 0; lane < W; ++lane)
                other.bits[lane] = 1 - down;
            search<DIMS>(c, o, target, factor, doubled, true, EVERY, other);
            const F other_loss = loss_of(o, target, other.value);
            const M better = V::lt(other_loss, loss);
            loss = V::sel(better, other_loss, loss);
            for (int k = 0; k < 8; ++k)
                found.value[k] = V::sel(better, other.value[k], found.value[k]);
            for (int lane = 0; lane < W; ++lane)
                if (V::bits(better) >> lane & 1)
                    found.word[0][lane] = other.word[0][lane], found.bits[lane] = other.bits[lane];
        }
        return loss;
    }
    // A trial: scale factor and shift for all columns of the group.
    template <int DIMS>
    INLINE F trial(const CodebookCoder &c, const GroupColumns &columns, F factor, bool down,
                   F (*value)[8], Found *found) {
        const F zero = V::set1(0), one = V::set1(1);
        const M some = V::mor(V::lt(factor, zero), V::gt(factor, zero));
        const F doubled = V::sel(
            some, V::div(one, V::sel(some, V::mul(factor, V::set1(0.5f)), one)), zero);
        F loss = zero;
        for (int o = 0; o < c.octets; ++o) {
            F correction[8], target[8];
            for (int k = 0; k < 8; ++k) {
                const int column = 8 * o + k;
                const F weight = V::load(columns.weight[column]);
                F sum = V::mul(V::sub(V::load(columns.target[column]), weight),
                               V::set1(c.upper[column][column]));
                for (int i = 0; i < 8 * o; ++i)
                    sum = V::add(sum, V::mul(V::set1(c.upper[i][column]),
                                             V::sub(V::load(columns.weight[i]),
                                                    value[i / 8][i % 8])));
                correction[k] = sum;
            }
            for (int k = 0; k < 8; ++k) {
                F sum = zero;
                for (int j = 0; j <= k; ++j)
                    sum = V::add(sum, V::mul(V::set1(c.octet[o].inverse[j][k]), correction[j]));
                target[k] = V::add(V::load(columns.weight[8 * o + k]), sum);
            }
            loss = V::add(loss, eight_columns<DIMS>(c, c.octet[o], target, factor, doubled, down,
                                                    found[o]));
            for (int k = 0; k < 8; ++k)
                value[o][k] = found[o].value[k];
        }
        return loss;
    }
    template <int DIMS>
    INLINE void choose_group(CodebookCoder &c, GroupColumns &columns, int64_t row) {
        constexpr int PARTS = 8 / DIMS, EIGHTS = MAX_GROUP / 8;
        const GptqCodebook &type = c.type;
        const int64_t place = c.number * c.stride + row;
        const F d = V::load(type.d + place), zero = V::set1(0);
        const I now = V::iload(type.scale + place), none = V::iset1(0);
        F best_loss = zero, value[EIGHTS][8], best_value[EIGHTS][8];
        I best_scale = now, best_word[EIGHTS][PARTS], best_bits[EIGHTS];
        Found found[EIGHTS];
        bool first = true;
        static const int moves[] = {0, -1, 1};
        for (int move : moves)
            for (int down = 0; down <= (type.shifted == type.group); ++down) {
                const I scale = V::imax(
                    V::imin(V::iadd(now, V::iset1(move)), V::iset1(type.most_scale)), none);
                const F twice = V::add(V::mul(V::set1(2), V::tof(scale)), V::set1(1));
                const F factor = V::mul(V::mul(d, twice), V::set1(type.unit));
                const F loss = trial<DIMS>(c, columns, factor, down, value, found);
                const M better = first ? V::eq(zero, zero) : V::lt(loss, best_loss);
                best_loss = first ? loss : V::sel(better, loss, best_loss);
                best_scale = V::seli(better, scale, best_scale);
                for (int o = 0; o < c.octets; ++o) {
                    for (int k = 0; k < 8; ++k)
                        best_value[o][k] =
                            first ? value[o][k] : V::sel(better, value[o][k], best_value[o][k]);
                    const I bits = V::iload(found[o].bits);
                    best_bits[o] = first ? bits : V::seli(better, bits, best_bits[o]);
                    for (int p = 0; p < PARTS; ++p) {
                        const I word = V::iload(found[o].word[p]);
                        best_word[o][p] = first ? word : V::seli(better, word, best_word[o][p]);
                    }
                }
                first = false;
            }
        V::store(columns.loss, best_loss);
        V::istore(type.scale + place, best_scale);
        for (int o = 0; o < c.octets; ++o) {
            const int64_t eight = c.number * c.octets + o;
            for (int k = 0; k < 8; ++k)
                V::store(columns.error[8 * o + k],
                         V::sub(V::load(columns.weight[8 * o + k]), best_value[o][k]));
            V::istore(type.bits + eight * c.stride + row, best_bits[o]);
            for (int p = 0; p < PARTS; ++p)
                V::istore(type.index + (eight * PARTS + p) * c.stride + row, best_word[o][p]);
        }
    }
    void choose(GroupColumns &columns, int64_t row) {
        if (type.dims == 8)
            choose_group<8>(*this, columns, row);
        else
            choose_group<4>(*this, columns, row);
    }
};

bool choose_codewords(const GptqStrip &strip, const GptqCodebook &type) {
    CodebookCoder coder(type, strip.stride);
    solve_strip(strip, coder);
    return true;
}
