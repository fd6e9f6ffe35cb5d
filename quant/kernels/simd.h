// Thin vector classes: one intrinsic, or a few, per operation; W lanes of float or int32.
// Avx2 has 8 lanes, Avx512 has 16. A port to another processor writes such a class and a unit that
// includes encoders.h with it. F are floats, I integers, M a mask of lanes; a float operation is
// one rounding (the build forbids contraction). Lookup tables: lut4, lut8 and lut16 read tables
// that tab4, tab8 and tab16 have loaded; only the low bits count.
#pragma once
#include <immintrin.h>
#include <stdint.h>
#define ALWAYS_INLINE inline __attribute__((always_inline))
#define INLINE static ALWAYS_INLINE

struct Avx2 {
    static constexpr int W = 8;
    typedef __m256 F;
    typedef __m256i I;
    typedef __m256 M;
    INLINE F set1(float a) { return _mm256_set1_ps(a); }
    INLINE F load(const float *p) { return _mm256_loadu_ps(p); }
    INLINE void store(float *p, F a) { _mm256_storeu_ps(p, a); }
    INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
    INLINE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
    INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    INLINE F div(F a, F b) { return _mm256_div_ps(a, b); }
    INLINE F sqrt(F a) { return _mm256_sqrt_ps(a); }
    INLINE F andnot(F a, F b) { return _mm256_andnot_ps(a, b); }
    INLINE F min(F a, F b) { return _mm256_min_ps(a, b); }
    INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
    INLINE M lt(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
    INLINE M le(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_LE_OQ); }
    INLINE M gt(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
    INLINE M ge(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
    INLINE M eq(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
    INLINE M mand(M a, M b) { return _mm256_and_ps(a, b); }
    INLINE M mor(M a, M b) { return _mm256_or_ps(a, b); }
    INLINE F sel(M m, F a, F b) { return _mm256_blendv_ps(b, a, m); }
    INLINE I seli(M m, I a, I b) {
        return _mm256_castps_si256(
            _mm256_blendv_ps(_mm256_castsi256_ps(b), _mm256_castsi256_ps(a), m));
    }
    INLINE unsigned bits(M m) { return (unsigned)_mm256_movemask_ps(m); }
    INLINE I inc(I u, M m) { return _mm256_sub_epi32(u, _mm256_castps_si256(m)); }
    INLINE I iset1(int a) { return _mm256_set1_epi32(a); }
    INLINE I iload(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
    INLINE void istore(void *p, I a) { _mm256_storeu_si256((__m256i *)p, a); }
    INLINE I iadd(I a, I b) { return _mm256_add_epi32(a, b); }
    INLINE I isub(I a, I b) { return _mm256_sub_epi32(a, b); }
    INLINE I iand(I a, I b) { return _mm256_and_si256(a, b); }
    INLINE I ior(I a, I b) { return _mm256_or_si256(a, b); }
    INLINE I imin(I a, I b) { return _mm256_min_epi32(a, b); }
    INLINE I imax(I a, I b) { return _mm256_max_epi32(a, b); }
    template <int n>
    INLINE I shl(I a) {
        return _mm256_slli_epi32(a, n);
    }
    template <int n>
    INLINE I shr(I a) {
        return _mm256_srli_epi32(a, n);
    }
    INLINE I shrv(I a, int n) { return _mm256_srl_epi32(a, _mm_cvtsi32_si128(n)); }
    INLINE M ne(I a, I b) {
        return _mm256_xor_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(a, b)),
                             _mm256_castsi256_ps(_mm256_set1_epi32(-1)));
    }
    INLINE F tof(I a) { return _mm256_cvtepi32_ps(a); }
    INLINE I asI(F a) { return _mm256_castps_si256(a); }
    INLINE F asF(I a) { return _mm256_castsi256_ps(a); }
    INLINE F tab4(const float *p) { return _mm256_broadcast_ps((const __m128 *)p); }
    INLINE F lut4(F t, I c) { return _mm256_permutevar_ps(t, c); } // low 2 bits of c, t = tab4
    INLINE F tab8(const float *p) { return _mm256_loadu_ps(p); }
    INLINE F lut8(F t, I c) { return _mm256_permutevar8x32_ps(t, c); } // low 3 bits of c
    struct T16 {
        __m256 lo, hi;
    };
    INLINE T16 tab16(const float *p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
    INLINE F lut16(T16 t, I c) { // 4 bits of c
        return _mm256_blendv_ps(_mm256_permutevar8x32_ps(t.lo, c),
                                _mm256_permutevar8x32_ps(t.hi, c),
                                _mm256_castsi256_ps(_mm256_slli_epi32(c, 28)));
    }
    struct Sum { // of W floats each, in float64
        __m256d low, high;
        ALWAYS_INLINE void add(F x) {
            low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(x)));
            high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)));
        }
        ALWAYS_INLINE void store(double *p) const {
            _mm256_storeu_pd(p, low);
            _mm256_storeu_pd(p + 4, high);
        }
    };
    INLINE float hmin(F a) {
        __m128 m = _mm_min_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        m = _mm_min_ps(m, _mm_movehl_ps(m, m));
        m = _mm_min_ss(m, _mm_shuffle_ps(m, m, 1));
        return _mm_cvtss_f32(m);
    }
    // Four columns of W rows: lane r of column[k] is row[r][at + k].
    INLINE void columns(const float *const *row, int at, F *column) {
        F four[4];
        for (int r = 0; r < 4; ++r)
            four[r] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row[r] + at)),
                                           _mm_loadu_ps(row[r + 4] + at), 1);
        const F low01 = _mm256_unpacklo_ps(four[0], four[1]),
                low23 = _mm256_unpacklo_ps(four[2], four[3]),
                high01 = _mm256_unpackhi_ps(four[0], four[1]),
                high23 = _mm256_unpackhi_ps(four[2], four[3]);
        column[0] = _mm256_shuffle_ps(low01, low23, 0x44);
        column[1] = _mm256_shuffle_ps(low01, low23, 0xee);
        column[2] = _mm256_shuffle_ps(high01, high23, 0x44);
        column[3] = _mm256_shuffle_ps(high01, high23, 0xee);
    }
    INLINE M lanes_from(int k) { // lanes >= k
        return _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                                                      _mm256_set1_epi32(k - 1)));
    }
};

#ifdef KERNELS_AVX512
struct Avx512 {
    static constexpr int W = 16;
    typedef __m512 F;
    typedef __m512i I;
    typedef __mmask16 M;
    INLINE F set1(float a) { return _mm512_set1_ps(a); }
    INLINE F load(const float *p) { return _mm512_loadu_ps(p); }
    INLINE void store(float *p, F a) { _mm512_storeu_ps(p, a); }
    INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
    INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
    INLINE F sqrt(F a) { return _mm512_sqrt_ps(a); }
    INLINE F andnot(F a, F b) { return _mm512_andnot_ps(a, b); }
    INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
    INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
    INLINE M lt(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
    INLINE M le(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
    INLINE M gt(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
    INLINE M ge(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
    INLINE M eq(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
    INLINE M mand(M a, M b) { return (M)(a & b); }
    INLINE M mor(M a, M b) { return (M)(a | b); }
    INLINE F sel(M m, F a, F b) { return _mm512_mask_blend_ps(m, b, a); }
    INLINE I seli(M m, I a, I b) { return _mm512_mask_blend_epi32(m, b, a); }
    INLINE unsigned bits(M m) { return (unsigned)m; }
    INLINE I inc(I u, M m) { return _mm512_mask_add_epi32(u, m, u, _mm512_set1_epi32(1)); }
    INLINE I iset1(int a) { return _mm512_set1_epi32(a); }
    INLINE I iload(const void *p) { return _mm512_loadu_si512(p); }
    INLINE void istore(void *p, I a) { _mm512_storeu_si512(p, a); }
    INLINE I iadd(I a, I b) { return _mm512_add_epi32(a, b); }
    INLINE I isub(I a, I b) { return _mm512_sub_epi32(a, b); }
    INLINE I iand(I a, I b) { return _mm512_and_si512(a, b); }
    INLINE I ior(I a, I b) { return _mm512_or_si512(a, b); }
    INLINE I imin(I a, I b) { return _mm512_min_epi32(a, b); }
    INLINE I imax(I a, I b) { return _mm512_max_epi32(a, b); }
    template <int n>
    INLINE I shl(I a) {
        return _mm512_slli_epi32(a, n);
    }
    template <int n>
    INLINE I shr(I a) {
        return _mm512_srli_epi32(a, n);
    }
    INLINE I shrv(I a, int n) { return _mm512_srl_epi32(a, _mm_cvtsi32_si128(n)); }
    INLINE M ne(I a, I b) { return _mm512_cmpneq_epi32_mask(a, b); }
    INLINE F tof(I a) { return _mm512_cvtepi32_ps(a); }
    INLINE I asI(F a) { return _mm512_castps_si512(a); }
    INLINE F asF(I a) { return _mm512_castsi512_ps(a); }
    INLINE F tab4(const float *p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
    INLINE F lut4(F t, I c) { return _mm512_permutevar_ps(t, c); }
    INLINE F tab8(const float *p) { return _mm512_broadcast_f32x8(_mm256_loadu_ps(p)); }
    INLINE F lut8(F t, I c) { return _mm512_permutexvar_ps(c, t); } // bit 3 picks a copy
    typedef __m512 T16;
    INLINE T16 tab16(const float *p) { return _mm512_loadu_ps(p); }
    INLINE F lut16(T16 t, I c) { return _mm512_permutexvar_ps(c, t); }
    struct Sum {
        __m512d low, high;
        ALWAYS_INLINE void add(F x) {
            low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(x)));
            high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)));
        }
        ALWAYS_INLINE void store(double *p) const {
            _mm512_storeu_pd(p, low);
            _mm512_storeu_pd(p + 8, high);
        }
    };
    INLINE float hmin(F a) {
        return Avx2::hmin(_mm256_min_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1)));
    }
    INLINE void columns(const float *const *row, int at, F *column) {
        F four[4];
        for (int r = 0; r < 4; ++r) {
            four[r] = _mm512_castps128_ps512(_mm_loadu_ps(row[r] + at));
            four[r] = _mm512_insertf32x4(four[r], _mm_loadu_ps(row[r + 4] + at), 1);
            four[r] = _mm512_insertf32x4(four[r], _mm_loadu_ps(row[r + 8] + at), 2);
            four[r] = _mm512_insertf32x4(four[r], _mm_loadu_ps(row[r + 12] + at), 3);
        }
        const F low01 = _mm512_unpacklo_ps(four[0], four[1]),
                low23 = _mm512_unpacklo_ps(four[2], four[3]),
                high01 = _mm512_unpackhi_ps(four[0], four[1]),
                high23 = _mm512_unpackhi_ps(four[2], four[3]);
        column[0] = _mm512_shuffle_ps(low01, low23, 0x44);
        column[1] = _mm512_shuffle_ps(low01, low23, 0xee);
        column[2] = _mm512_shuffle_ps(high01, high23, 0x44);
        column[3] = _mm512_shuffle_ps(high01, high23, 0xee);
    }
    INLINE M lanes_from(int k) { return (M)(k >= 16 ? 0 : 0xffffu << k); }
};
#endif
