// iq1_s: super-blocks of 8 blocks of 32 weights, each with a scale and a shift.

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
bool rows_iq1_s(const Codebook *book, const float *x, uint8_t *y, int64_t rows, int64_t n,
                const float *importance) {
    return each_row(row_iq1_s, book, x, y, rows, n, n / 256 * 50, importance);
}
