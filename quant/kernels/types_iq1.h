// iq1_s (8 blocks of 32 weights) and iq1_m (16 of 16, a shift for each half).

// ---- iq1_s

// Sums of w and w * x over the sorted weights of the 8 blocks; entries past the end repeat the
// last.
struct PrefixSums {
    alignas(64) float wx[8][96], w[8][96];
    int order[8][32];
    void take(const float *x, const float *weights) {
        alignas(32) float terms_wx[32][8], terms_w[32][8], row_wx[8], row_w[8];
        for (int b = 0; b < 8; ++b) {
            sort_order<32>(x + 32 * b, order[b]);
            for (int j = 0; j < 32; ++j) {
                const int i = 32 * b + order[b][j];
                terms_w[j][b] = weights[i];
                terms_wx[j][b] = weights[i] * x[i];
            }
            wx[b][0] = w[b][0] = 0;
        }
        __m256 sum_wx = Avx2::set1(0), sum_w = sum_wx;
        for (int j = 0; j < 32; ++j) { // lanes are blocks
            sum_wx = Avx2::add(sum_wx, Avx2::load(terms_wx[j]));
            sum_w = Avx2::add(sum_w, Avx2::load(terms_w[j]));
            Avx2::store(row_wx, sum_wx);
            Avx2::store(row_w, sum_w);
            for (int b = 0; b < 8; ++b)
                wx[b][j + 1] = row_wx[b], w[b][j + 1] = row_w[b];
        }
        for (int b = 0; b < 8; ++b)
            for (int j = 33; j < 33 + W; ++j)
                wx[b][j] = wx[b][32], w[b][j] = w[b][32];
    }
};
INLINE Split split_iq1_s(const float *px, const float *pw,
                         float max) { // prefix sums of w * x and w
    const float *const up = SHIFTED_UP, *const down = SHIFTED_DOWN;
    alignas(64) float top_x[2][64],
        top_w[2][64]; // the share of level 2, by `second`, for both shifts
    for (int j = 0; j < 33 + W; j += W) {
        const F dx = V::sub(V::set1(px[32]), V::load(px + j)),
                dw = V::sub(V::set1(pw[32]), V::load(pw + j));
        V::store(top_x[0] + j, V::mul(dx, V::set1(up[2])));
        V::store(top_x[1] + j, V::mul(dx, V::set1(down[2])));
        V::store(top_w[0] + j, V::mul(V::mul(dw, V::set1(up[2])), V::set1(up[2])));
        V::store(top_w[1] + j, V::mul(V::mul(dw, V::set1(down[2])), V::set1(down[2])));
    }
    const auto scores = [&](int first) __attribute__((always_inline)) {
        const F vx = V::set1(px[first]), vw = V::set1(pw[first]), eighth = V::set1(0.125f);
        const F x_up = V::set1((px[first] - px[0]) * up[0]),
                x_down = V::set1((px[first] - px[0]) * down[0]);
        const F w_up = V::set1((pw[first] - pw[0]) * up[0] * up[0]),
                w_down = V::set1((pw[first] - pw[0]) * down[0] * down[0]);
        return [=, &top_x, &top_w](int second, F *qx, F *q2) __attribute__((always_inline)) {
            const F mx = V::mul(V::sub(V::load(px + second), vx), eighth);
            const F mw = V::mul(V::mul(V::sub(V::load(pw + second), vw), eighth), eighth);
            qx[0] = V::add(V::add(x_up, mx), V::load(top_x[0] + second));
            q2[0] = V::add(V::add(w_up, mw), V::load(top_w[0] + second));
            qx[1] = V::add(V::sub(x_down, mx), V::load(top_x[1] + second));
            q2[1] = V::add(V::add(w_down, mw), V::load(top_w[1] + second));
        };
    };
    const auto exact = [=](int first, int second, int shift, float *qx, float *q2) {
        const float *v = shift ? down : up;
        *qx = (px[first] - px[0]) * v[0] + (px[second] - px[first]) * v[1] +
              (px[32] - px[second]) * v[2];
        *q2 = (pw[first] - pw[0]) * v[0] * v[0] + (pw[second] - pw[first]) * v[1] * v[1] +
              (pw[32] - pw[second]) * v[2] * v[2];
    };
    return best_split<32, 2>(scores, exact, max, pw[32]);
}
struct TernaryBlock {
    int codewords[4];
    float scale;
    bool down;
};
// False: ggml has to encode the row.
INLINE bool block_iq1_s(const Codebook &book, const Split &split, const int *order, const float *x,
                        const float *w, TernaryBlock *out) {
    int8_t levels[32];
    float scale = split.scale;
    bool down = split.shift != 0, all = true;
    levels_of_split<32>(split, order, levels);
    if (scale < 0) {
        for (int j = 0; j < 32; ++j)
            levels[j] = (int8_t)(2 - levels[j]);
        scale = -scale;
        down = !down;
    }
    const float *values = down ? SHIFTED_DOWN : SHIFTED_UP;
    for (int k = 0; k < 4; ++k) {
        out->codewords[k] =
            ternary_codeword(book, levels + 8 * k, x + 8 * k, w + 8 * k, scale, values, &all);
        if (out->codewords[k] < 0)
            return false;
    }
    if (!all) {
        float qx[32], q2[32], sum_qx = 0, sum_q2 = 0;
        for (int i = 0; i < 32; ++i) {
            const float q = values[book.level[out->codewords[i / 8]][i % 8]];
            qx[i] = w[i] * q * x[i];
            q2[i] = w[i] * q * q;
        }
        for (int i = 0; i < 32; ++i)
            sum_qx += qx[i], sum_q2 += q2[i];
        if (sum_qx > 0 && sum_q2 > 0)
            scale = sum_qx / sum_q2;
    }
    out->scale = scale;
    out->down = down;
    return scale >= 0;
}
bool row_iq1_s(const Codebook *book, const float *x, uint8_t *y, int64_t n,
               const float *importance) {
    BlockSums sums;
    for (int64_t b = 0; b < n / 256; ++b, x += 256, y += 50) {
        const float sum = sums.of(x, b, n / 256, 256);
        if (!trusted(sum, importance))
            return false;
        alignas(64) float w[256];
        PrefixSums prefix;
        TernaryBlock blocks[8];
        float max_scale = 0;
        uint16_t high[8] = {0};
        memset(y, 0, 50);
        weigh<256>(x, at(importance, 256 * b), 2 * sum / 256, w);
        prefix.take(x, w);
        for (int k = 0; k < 8; ++k) {
            const float max = largest_magnitude(x + 32 * k, 32);
            blocks[k].scale = 0;
            blocks[k].down = false;
            if (max < 1e-12f)
                continue;
            const Split split = split_iq1_s(prefix.wx[k], prefix.w[k], max);
            if (split.first < 0)
                continue;
            if (!block_iq1_s(*book, split, prefix.order[k], x + 32 * k, w + 32 * k, blocks + k))
                return false;
            for (int j = 0; j < 4; ++j) {
                y[2 + 4 * k + j] = (uint8_t)blocks[k].codewords[j];
                high[k] |= (uint16_t)(blocks[k].codewords[j] >> 8 << 3 * j);
            }
            max_scale = max_scale > blocks[k].scale ? max_scale : blocks[k].scale;
        }
        if (max_scale) {
            const float d = max_scale / 15, inverse = 1 / d;
            store_half(y, d * 1.125f);
            for (int k = 0; k < 8; ++k)
                high[k] |=
                    (uint16_t)((scale_level(inverse, blocks[k].scale, 7) | (blocks[k].down ? 8 : 0))
                               << 12);
        }
        memcpy(y + 34, high, 16);
    }
    return true;
}

// ---- iq1_m: shifts 0 ... 3 are (up, up), (up, down), (down, up), (down, down) for the halves of a
// block

INLINE const float *values_iq1_m(int shift, int half) {
    return (half ? shift % 2 == 0 : shift < 2) ? SHIFTED_UP : SHIFTED_DOWN;
}

INLINE Split split_iq1_m(const float *x, const float *w, const int *order, float max) {
    const float up = SHIFTED_UP[2], down = SHIFTED_DOWN[2];
    const float up01 = SHIFTED_UP[0] * SHIFTED_UP[0] - SHIFTED_UP[1] * SHIFTED_UP[1];
    const float up12 = SHIFTED_UP[1] * SHIFTED_UP[1] - SHIFTED_UP[2] * SHIFTED_UP[2];
    const float down01 = SHIFTED_DOWN[0] * SHIFTED_DOWN[0] - SHIFTED_DOWN[1] * SHIFTED_DOWN[1];
    const float down12 = SHIFTED_DOWN[1] * SHIFTED_DOWN[1] - SHIFTED_DOWN[2] * SHIFTED_DOWN[2];
    alignas(64) float px[2][48], pw[2][48], pw_up[2][48],
        pw_down[2][48]; // prefix sums of each half
    float sum_x[2] = {0, 0}, sum_w[2] = {0, 0};
    px[0][0] = px[1][0] = pw[0][0] = pw[1][0] = 0;
    for (int j = 0; j < 16; ++j) {
        const int i = order[j], half = i / 8;
        // the original adds 0 to the other half's sums, which keeps them: they start at +0 and
        // never become -0
        sum_x[half] += w[i] * x[i];
        sum_w[half] += w[i];
        for (int h = 0; h < 2; ++h)
            px[h][j + 1] = sum_x[h], pw[h][j + 1] = sum_w[h];
    }
    for (int h = 0; h < 2; ++h) {
        for (int j = 17; j < 17 + W; ++j)
            px[h][j] = px[h][16], pw[h][j] = pw[h][16];
        for (int j = 0; j < 17 + W; ++j)
            pw_up[h][j] = pw[h][j] * up12, pw_down[h][j] = pw[h][j] * down12;
    }
    const float x0 = px[0][16], x1 = px[1][16], w0 = pw[0][16], w1 = pw[1][16];
    const auto scores = [&](int first) __attribute__((always_inline)) {
        const F f0 = V::set1(px[0][first]), f1 = V::set1(px[1][first]);
        const F b0_up = V::set1(w0 * up * up + pw[0][first] * up01),
                b1_up = V::set1(w1 * up * up + pw[1][first] * up01);
        const F b0_down = V::set1(w0 * down * down + pw[0][first] * down01),
                b1_down = V::set1(w1 * down * down + pw[1][first] * down01);
        const F x0_up = V::set1(x0 * up), x0_down = V::set1(x0 * down), x1_up = V::set1(x1 * up),
                x1_down = V::set1(x1 * down);
        return [=, &px, &pw_up, &pw_down](int second, F *qx, F *q2) __attribute__((always_inline)) {
            const F a0 = V::add(f0, V::load(px[0] + second)),
                    a1 = V::add(f1, V::load(px[1] + second));
            const F q0_up = V::sub(x0_up, a0), q0_down = V::sub(x0_down, a0),
                    q1_up = V::sub(x1_up, a1), q1_down = V::sub(x1_down, a1);
            const F r0_up = V::add(b0_up, V::load(pw_up[0] + second)),
                    r1_up = V::add(b1_up, V::load(pw_up[1] + second));
            const F r0_down = V::add(b0_down, V::load(pw_down[0] + second)),
                    r1_down = V::add(b1_down, V::load(pw_down[1] + second));
            qx[0] = V::add(q0_up, q1_up), qx[1] = V::add(q0_up, q1_down),
            qx[2] = V::add(q0_down, q1_up), qx[3] = V::add(q0_down, q1_down);
            q2[0] = V::add(r0_up, r1_up), q2[1] = V::add(r0_up, r1_down),
            q2[2] = V::add(r0_down, r1_up), q2[3] = V::add(r0_down, r1_down);
        };
    };
    const auto exact = [&](int first, int second, int shift, float *qx, float *q2) {
        const bool up0 = shift < 2, up1 = shift % 2 == 0;
        const float q0 = x0 * (up0 ? up : down) - (px[0][first] + px[0][second]),
                    q1 = x1 * (up1 ? up : down) - (px[1][first] + px[1][second]);
        const float r0 = up0 ? w0 * up * up + pw[0][first] * up01 + pw[0][second] * up12
                             : w0 * down * down + pw[0][first] * down01 + pw[0][second] * down12;
        const float r1 = up1 ? w1 * up * up + pw[1][first] * up01 + pw[1][second] * up12
                             : w1 * down * down + pw[1][first] * down01 + pw[1][second] * down12;
        *qx = q0 + q1;
        *q2 = r0 + r1;
    };
    return best_split<16, 4>(scores, exact, max, w0 + w1);
}
struct ShiftedBlock {
    int codewords[2], shift;
    float scale;
};
INLINE bool block_iq1_m(const Codebook &book, const Split &split, const int *order, const float *x,
                        const float *w, ShiftedBlock *out) {
    int8_t levels[16];
    float scale = split.scale;
    int shift = split.shift;
    bool all = true;
    levels_of_split<16>(split, order, levels);
    if (scale < 0) {
        for (int j = 0; j < 16; ++j)
            levels[j] = (int8_t)(2 - levels[j]);
        scale = -scale;
        shift = 3 - shift;
    }
    for (int h = 0; h < 2; ++h) {
        out->codewords[h] = ternary_codeword(book, levels + 8 * h, x + 8 * h, w + 8 * h, scale,
                                             values_iq1_m(shift, h), &all);
        if (out->codewords[h] < 0)
            return false;
    }
    if (!all) {
        float qx = 0, q2 = 0;
        for (int i = 0; i < 16; ++i) {
            const float q = values_iq1_m(shift, i / 8)[book.level[out->codewords[i / 8]][i % 8]];
            qx += w[i] * q * x[i];
            q2 += w[i] * q * q;
        }
        if (qx > 0 && q2 > 0)
            scale = qx / q2;
    }
    out->scale = scale;
    out->shift = shift;
    return scale >= 0;
}
// Levels of the scales, the shifts, and the scale of the super-block fitted to them, whose half is
// spread over four words.
INLINE void finish_iq1_m(const Codebook &book, const float *x, const float *w,
                         const ShiftedBlock *blocks, float max_scale, uint8_t *y) {
    static const uint8_t shift_bits[4] = {0x00, 0x80, 0x08, 0x88};
    uint16_t words[4] = {0, 0, 0, 0};
    float d = max_scale / 15, qx[256], q2[256], sum_qx = 0, sum_q2 = 0;
    const float inverse = 1 / d;
    for (int b = 0; b < 16; ++b) {
        const int level = scale_level(inverse, blocks[b].scale, 7);
        words[b / 4] |= (uint16_t)(level << 3 * (b % 4));
        y[32 + b] |= shift_bits[blocks[b].shift];
        for (int i = 0; i < 16; ++i) {
            const int j = 16 * b + i;
            const float q = values_iq1_m(blocks[b].shift,
                                         i / 8)[book.level[blocks[b].codewords[i / 8]][i % 8]] *
                            (2 * level + 1);
            qx[j] = w[j] * q * x[j];
            q2[j] = w[j] * q * q;
        }
    }
    for (int j = 0; j < 256; ++j)
        sum_qx += qx[j], sum_q2 += q2[j];
    if (sum_q2 > 0)
        d = sum_qx / sum_q2;
    const uint16_t half = to_half(d * 1.1125f);
    for (int k = 0; k < 4; ++k)
        words[k] |= (uint16_t)((half >> 4 * k & 15) << 12);
    memcpy(y + 48, words, 8);
}
bool row_iq1_m(const Codebook *book, const float *x, uint8_t *y, int64_t n,
               const float *importance) {
    BlockSums sums;
    for (int64_t b = 0; b < n / 256; ++b, x += 256, y += 56) {
        const float sum = sums.of(x, b, n / 256, 256);
        if (!trusted(sum, importance))
            return false;
        alignas(64) float w[256];
        ShiftedBlock blocks[16] = {};
        float max_scale = 0;
        memset(y, 0, 56);
        weigh<256>(x, at(importance, 256 * b), 2 * sum / 256, w);
        for (int k = 0; k < 16; ++k) {
            const float *xk = x + 16 * k, *wk = w + 16 * k;
            const float max = largest_magnitude(xk, 16);
            if (max < 1e-7f)
                continue;
            int order[16];
            sort_order<16>(xk, order);
            const Split split = split_iq1_m(xk, wk, order, max);
            if (split.first < 0)
                continue;
            if (!block_iq1_m(*book, split, order, xk, wk, blocks + k))
                return false;
            const int *codewords = blocks[k].codewords;
            y[2 * k] = (uint8_t)codewords[0];
            y[2 * k + 1] = (uint8_t)codewords[1];
            y[32 + k] = (uint8_t)(codewords[0] >> 8 | codewords[1] >> 8 << 4);
            max_scale = max_scale > blocks[k].scale ? max_scale : blocks[k].scale;
        }
        if (max_scale)
            finish_iq1_m(*book, x, w, blocks, max_scale, y);
    }
    return true;
}
bool rows_iq1_s(const Codebook *book, const float *x, uint8_t *y, int64_t rows, int64_t n,
                const float *importance) {
    return each_row(row_iq1_s, book, x, y, rows, n, n / 256 * 50, importance);
}
bool rows_iq1_m(const Codebook *book, const float *x, uint8_t *y, int64_t rows, int64_t n,
                const float *importance) {
    return each_row(row_iq1_m, book, x, y, rows, n, n / 256 * 56, importance);
}
