/* Attention for levels with 16-lane vectors; included once by each level's file, after rows.inc.h.
 * ATTEND_CORE names the header with the level's own scores_bf16 and values_bf16. Lanes are keys in
 * the scores and dimensions in the values; the order of operations of one element is
 * ref_attend.c's.
 *
 * Pairs of keys behind the last visible one are not multiplied at all: their p is +0 and their v
 * finite, so they could only turn an O of -0 into +0, which the +0 added at the chunk's end does.
 */

typedef struct {
    const kattend_t *job;
    uint32_t dim, dim16;
    union {
        uint32_t pairs[ATTEND_ROWS][KHEAD_DIM_MAX / 2]; /* two BF16 each */
        float f32[ATTEND_ROWS][KHEAD_DIM_MAX];
    } q;
    float s[ATTEND_ROWS][KEYS_TILE]; /* scores, then probabilities */
    uint32_t p[ATTEND_ROWS][KEYS_TILE / 2];
    float m[ATTEND_ROWS];
    vf_t l[ATTEND_ROWS];
    float o[ATTEND_ROWS][KHEAD_DIM_MAX]; /* of the chunk */
    float m_all[ATTEND_ROWS], l_all[ATTEND_ROWS];
    float o_all[ATTEND_ROWS][KHEAD_DIM_MAX];
} attend_t;

#include ATTEND_CORE

static void attend_load_q(attend_t *a)
{
    for (uint32_t r = 0; r < a->job->n; r++) {
        const float *q = a->job->q[r];
        if (a->job->pages->mode == KMODE_F32) {
            memcpy(a->q.f32[r], q, a->dim * sizeof *q);
            continue;
        }
        uint16_t halves[KHEAD_DIM_MAX];
        for (uint32_t d = 0; d < a->dim; d += 16)
            vi_store_halves(halves + d, bf16_lanes(vf_load_n(q + d, a->dim - d)));
        memcpy(a->q.pairs[r], halves, a->dim * sizeof halves[0]);
    }
}

/* F32 mode: one row and 16 keys at a time. */
static void scores_f32(attend_t *a, const uint8_t *const pages[4], uint32_t n_pages)
{
    for (uint32_t r = 0; r < a->job->n; r++)
        for (uint32_t b = 0; b < n_pages; b++) {
            const float *k = (const float *)(const void *)pages[b];
            vf_t sum = vf_set(0);
            for (uint32_t d = 0; d < a->dim; d++)
                sum = vf_fma(vf_load(k + (size_t)d * 16), vf_set(a->q.f32[r][d]), sum);
            vf_store(a->s[r] + 16 * b, sum);
        }
}

static void values_f32(attend_t *a, const uint8_t *const pages[4], uint32_t n_keys)
{
    for (uint32_t r = 0; r < a->job->n; r++)
        for (uint32_t d = 0; d < a->dim16; d += 16) {
            vf_t sum = vf_load(a->o[r] + d);
            for (uint32_t i = 0; i < n_keys; i++) {
                const float *v =
                    (const float *)(const void *)(pages[i / 16] + a->job->pages->k_bytes);
                sum = vf_fma(vf_load(v + (size_t)(i % 16) * a->dim16 + d), vf_set(a->s[r][i]), sum);
            }
            vf_store(a->o[r] + d, sum);
        }
}

/* Turns a row's scores into probabilities and folds the tile's maximum and sum into m, l and O. The
 * first n keys of the tile are visible, at least one. */
static void attend_softmax(attend_t *a, uint32_t r, uint32_t n)
{
    vf_t scale = vf_set(a->job->scale);
    vf_t most = vf_set(a->m[r]);
    vf_t x[KEYS_TILE / 16];
    for (uint32_t i = 0; i < KEYS_TILE / 16; i++) {
        uint32_t seen = n > 16 * i ? n - 16 * i : 0;
        x[i] = vf_mul(vf_load(a->s[r] + 16 * i), scale);
        most = vf_max(vf_keep(x[i], seen, vf_set(-INFINITY)), most);
    }
    float m = vf_largest(most);
    if (m != a->m[r]) { /* else the factor is exactly 1 */
        vf_t shrink = exp2_vec(vf_set(a->m[r] - m));
        a->l[r] = vf_mul(a->l[r], shrink);
        for (uint32_t d = 0; d < a->dim16; d += 16)
            vf_store(a->o[r] + d, vf_mul(vf_load(a->o[r] + d), shrink));
        a->m[r] = m;
    }
    uint16_t halves[KEYS_TILE];
    for (uint32_t i = 0; i < KEYS_TILE / 16; i++) {
        uint32_t seen = n > 16 * i ? n - 16 * i : 0;
        vf_t p = vf_keep(exp2_vec(vf_sub(x[i], vf_set(m))), seen, vf_set(0));
        a->l[r] = vf_add(a->l[r], p);
        vf_store(a->s[r] + 16 * i, p);
        vi_store_halves(halves + 16 * i, bf16_lanes(p));
    }
    memcpy(a->p[r], halves, sizeof halves);
}

static void attend_tile(attend_t *a, uint32_t tile, uint32_t n_keys)
{
    const kattend_t *job = a->job;
    const uint8_t *pages[KEYS_TILE / KKV_BLOCK_TOKENS];
    uint32_t n_pages = (n_keys + KKV_BLOCK_TOKENS - 1) / KKV_BLOCK_TOKENS;
    for (uint32_t b = 0; b < KEYS_TILE / KKV_BLOCK_TOKENS; b++) {
        /* Scores of pages past the last one are computed from the first and then not looked at. */
        uint32_t block = tile / KKV_BLOCK_TOKENS + (b < n_pages ? b : 0);
        pages[b] = job->base + job->blocks[block] * job->block_stride;
    }
    bool f32 = job->pages->mode == KMODE_F32;
    if (f32)
        scores_f32(a, pages, n_pages);
    else
        scores_bf16(a, pages);
    for (uint32_t r = 0; r < job->n; r++) {
        uint32_t end = job->positions[r] + 1;
        if (end > tile) {
            attend_softmax(a, r, end - tile < n_keys ? end - tile : n_keys);
            continue;
        }
        memset(a->s[r], 0, sizeof a->s[r]);
        memset(a->p[r], 0, sizeof a->p[r]);
    }
    if (f32)
        values_f32(a, pages, n_keys);
    else
        values_bf16(a, pages, (n_keys + 1) / 2);
}

/* Folds the finished chunk of one row into its result. */
static void attend_merge(attend_t *a, uint32_t r)
{
    float most = a->m[r] > a->m_all[r] ? a->m[r] : a->m_all[r];
    vf_t old = exp2_vec(vf_set(a->m_all[r] - most));
    vf_t new = exp2_vec(vf_set(a->m[r] - most));
    float lanes[16];
    vf_store(lanes, vf_fma(vf_set(vf_tree_sum(a->l[r])), new, vf_mul(vf_set(a->l_all[r]), old)));
    a->l_all[r] = lanes[0];
    for (uint32_t d = 0; d < a->dim16; d += 16) {
        vf_t chunk = vf_add(vf_load(a->o[r] + d), vf_set(0));
        vf_store(a->o_all[r] + d, vf_fma(chunk, new, vf_mul(vf_load(a->o_all[r] + d), old)));
    }
    a->m_all[r] = most;
}

static void attend_vec(const kattend_t *job)
{
    attend_t a; /* set piece by piece: zeroing it whole would cost as much as a short context */
    a.job = job;
    a.dim = job->pages->head_dim;
    a.dim16 = job->pages->dim16;
    uint32_t n_keys = 0;
    for (uint32_t r = 0; r < job->n; r++) {
        n_keys = job->positions[r] + 1 > n_keys ? job->positions[r] + 1 : n_keys;
        a.m_all[r] = -INFINITY;
        a.l_all[r] = 0;
        memset(a.o_all[r], 0, a.dim16 * sizeof a.o_all[r][0]);
    }
    attend_load_q(&a);
    for (uint32_t chunk = 0; chunk < n_keys; chunk += KEYS_CHUNK) {
        uint32_t chunk_end = n_keys - chunk < KEYS_CHUNK ? n_keys : chunk + KEYS_CHUNK;
        for (uint32_t r = 0; r < job->n; r++) {
            a.m[r] = -INFINITY;
            a.l[r] = vf_set(0);
            memset(a.o[r], 0, a.dim16 * sizeof a.o[r][0]);
        }
        for (uint32_t tile = chunk; tile < chunk_end; tile += KEYS_TILE)
            attend_tile(&a, tile, chunk_end - tile < KEYS_TILE ? chunk_end - tile : KEYS_TILE);
        for (uint32_t r = 0; r < job->n; r++)
            if (job->positions[r] >= chunk)
                attend_merge(&a, r);
    }
    for (uint32_t r = 0; r < job->n; r++) {
        vf_t inverse = vf_set(1.0f / a.l_all[r]);
        for (uint32_t d = 0; d < a.dim; d += 16)
            vf_store_n(job->out[r] + d, vf_mul(vf_load(a.o_all[r] + d), inverse), a.dim - d);
    }
}
