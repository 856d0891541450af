/* The two products of attention without VDPBF16PS: a line's odd and even halves become F32 and are
 * multiplied one after the other, which is what that instruction does. */
#ifndef SHOAL_KERNELS_CPU_ATTEND_CORE_AVX2_H
#define SHOAL_KERNELS_CPU_ATTEND_CORE_AVX2_H

static inline __m256 odd_halves(__m256i pairs)
{
    return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32((int32_t)0xffff0000u)));
}

static inline __m256 even_halves(__m256i pairs)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
}

static inline __m256i load_pairs(const uint8_t *from)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)from);
}

/* acc + odd * odd, then + even * even, of 8 pairs with one pair. */
static inline __m256 dot_pairs(__m256 acc, __m256i pairs, __m256 odd, __m256 even)
{
    acc = _mm256_fmadd_ps(odd_halves(pairs), odd, acc);
    return _mm256_fmadd_ps(even_halves(pairs), even, acc);
}

static inline __m256 odd_of(uint32_t pair)
{
    return _mm256_set1_ps(bits_float(pair & 0xffff0000u));
}

static inline __m256 even_of(uint32_t pair)
{
    return _mm256_set1_ps(bits_float(pair << 16));
}

/* Two pages (32 keys) of one row at a time: four accumulators. */
static void scores_bf16(attend_t *a, const uint8_t *const pages[4])
{
    for (uint32_t r = 0; r < a->n; r++)
        for (uint32_t b = 0; b < 4; b += 2) {
            __m256 s0 = _mm256_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
            for (uint32_t d = 0; d < a->dim / 2; d++) {
                __m256 odd = odd_of(a->q.pairs[r][d]);
                __m256 even = even_of(a->q.pairs[r][d]);
                const uint8_t *first = pages[b] + (size_t)d * 64;
                const uint8_t *second = pages[b + 1] + (size_t)d * 64;
                s0 = dot_pairs(s0, load_pairs(first), odd, even);
                s1 = dot_pairs(s1, load_pairs(first + 32), odd, even);
                s2 = dot_pairs(s2, load_pairs(second), odd, even);
                s3 = dot_pairs(s3, load_pairs(second + 32), odd, even);
            }
            _mm256_storeu_ps(a->s[r] + 16 * b, s0);
            _mm256_storeu_ps(a->s[r] + 16 * b + 8, s1);
            _mm256_storeu_ps(a->s[r] + 16 * b + 16, s2);
            _mm256_storeu_ps(a->s[r] + 16 * b + 24, s3);
        }
}

static void values_bf16(attend_t *a, const uint8_t *const pages[4], uint32_t n_pairs)
{
    for (uint32_t r = 0; r < a->n; r++)
        for (uint32_t d = 0; d < a->dim16; d += 16) {
            __m256 o0 = _mm256_loadu_ps(a->o[r] + d);
            __m256 o1 = _mm256_loadu_ps(a->o[r] + d + 8);
            for (uint32_t i = 0; i < n_pairs; i++) {
                const uint8_t *line =
                    pages[i / 8] + ((size_t)(i % 8) * a->dim16 + d) * sizeof(uint32_t);
                __m256 odd = odd_of(a->p[r][i]);
                __m256 even = even_of(a->p[r][i]);
                o0 = dot_pairs(o0, load_pairs(line), odd, even);
                o1 = dot_pairs(o1, load_pairs(line + 32), odd, even);
            }
            _mm256_storeu_ps(a->o[r] + d, o0);
            _mm256_storeu_ps(a->o[r] + d + 8, o1);
        }
}

#endif
