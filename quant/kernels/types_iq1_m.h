// iq1_m: super-blocks of 16 blocks of 16 weights, each with a scale and a shift for each half.
// Shifts 0 ... 3 are (up, up), (up, down), (down, up), (down, down) for the halves of a block.

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
bool rows_iq1_m(const Codebook *book, const float *x, uint8_t *y, int64_t rows, int64_t n,
                const float *importance) {
    return each_row(row_iq1_m, book, x, y, rows, n, n / 256 * 56, importance);
}
