/* Attention for levels with 16-lane vectors; included once by each level's file, after rows.inc.h.
 * ATTEND_CORE names the header with the level's own scores_bf16 and values_bf16. Lanes are keys in
 * the scores and dimensions in the values; the order of operations of one element is
 * ref_attend.c's.
 *
 * Tiles that a list selects, or whose values lie in the keys, are brought into the layout of pages
 * first (attend_stage.c). Pairs of keys behind the last visible one are not multiplied at all:
 * their p is +0 and their v finite, so they could only turn an O of -0 into +0, which the +0 added
 * at the chunk's end does.
 */

/* Up to ATTEND_ROWS pairs of a call, from pair `at` on. */
typedef struct {
    const kattend_t *job;
    uint32_t at, n;
    bool f32;
    uint32_t dim, dim16; /* of a key; of a value, rounded up to 16 */
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
    for (uint32_t r = 0; r < a->n; r++) {
        const float *q = a->job->q[a->at + r];
        if (a->f32) {
            memcpy(a->q.f32[r], q, a->dim * sizeof *q);
            continue;
        }
        /* A row of q has room for whole lines. */
        _Static_assert(KHEAD_DIM_MAX % 16 == 0, "the last line of the widest key fits");
        uint16_t *halves = (uint16_t *)(void *)a->q.pairs[r];
        for (uint32_t d = 0; d < a->dim; d += 16)
            vi_store_halves(halves + d, bf16_lanes(vf_load_n(q + d, a->dim - d)));
    }
}

/* F32 mode: one row and 16 keys at a time. */
static void scores_f32(attend_t *a, const uint8_t *const pages[4], uint32_t n_pages)
{
    for (uint32_t r = 0; r < a->n; r++)
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
    for (uint32_t r = 0; r < a->n; r++)
        for (uint32_t d = 0; d < a->dim16; d += 16) {
            vf_t sum = vf_load(a->o[r] + d);
            for (uint32_t i = 0; i < n_keys; i++) {
                const float *v = (const float *)(const void *)pages[i / 16];
                sum = vf_fma(vf_load(v + (size_t)(i % 16) * a->dim16 + d), vf_set(a->s[r][i]), sum);
            }
            vf_store(a->o[r] + d, sum);
        }
}

/* Which keys of a tile a row sees, a constant where it is asked: most tiles are seen whole, and of
 * the rest most from their first key on. */
typedef enum { SEES_ALL, SEES_FIRST, SEES_MIDDLE } sees_t;

/* Of 16 lanes, those in [lo, hi) counted from `at`; the others become `other`. */
static inline __attribute__((always_inline)) vf_t
visible_lanes(sees_t sees, vf_t v, uint32_t at, uint32_t lo, uint32_t hi, vf_t other)
{
    if (sees == SEES_ALL)
        return v;
    v = vf_keep(v, hi > at ? hi - at : 0, other);
    return sees == SEES_MIDDLE && lo > at ? vf_keep(other, lo - at, v) : v;
}

/* Turns a row's scores into probabilities and folds the tile's maximum and sum into m, l and O.
 * Keys [lo, hi) of the tile are visible, at least one. */
static inline __attribute__((always_inline)) void
attend_softmax(attend_t *a, uint32_t r, float factor, sees_t sees, uint32_t lo, uint32_t hi)
{
    vf_t scale = vf_set(factor);
    vf_t most = vf_set(a->m[r]);
    vf_t x[KEYS_TILE / 16];
    for (uint32_t i = 0; i < KEYS_TILE / 16; i++) {
        x[i] = vf_mul(vf_load(a->s[r] + 16 * i), scale);
        most = vf_max(visible_lanes(sees, x[i], 16 * i, lo, hi, vf_set(-INFINITY)), most);
    }
    float m = vf_largest(most);
    if (m != a->m[r]) { /* else the factor is exactly 1 */
        vf_t shrink = exp2_vec(vf_set(a->m[r] - m));
        a->l[r] = vf_mul(a->l[r], shrink);
        for (uint32_t d = 0; d < a->dim16; d += 16)
            vf_store(a->o[r] + d, vf_mul(vf_load(a->o[r] + d), shrink));
        a->m[r] = m;
    }
    uint16_t *halves = (uint16_t *)(void *)a->p[r];
    for (uint32_t i = 0; i < KEYS_TILE / 16; i++) {
        vf_t p = exp2_vec(vf_sub(x[i], vf_set(m)));
        p = visible_lanes(sees, p, 16 * i, lo, hi, vf_set(0));
        a->l[r] = vf_add(a->l[r], p);
        if (a->f32)
            vf_store(a->s[r] + 16 * i, p);
        else
            vi_store_halves(halves + 16 * i, bf16_lanes(p));
    }
}

/* The scores of a row become logits under a softcap, as powers of two: their factor is then 1. */
static void attend_softcap(attend_t *a, uint32_t r)
{
    vf_t scale = vf_set(a->job->scale), cap = vf_set(a->job->softcap);
    for (uint32_t i = 0; i < KEYS_TILE; i += 16) {
        vf_t x = softcap_lanes(vf_mul(vf_load(a->s[r] + i), scale), cap);
        vf_store(a->s[r] + i, vf_mul(x, vf_set(LOG2_E)));
    }
}

static void attend_row(attend_t *a, uint32_t r, uint32_t lo, uint32_t hi)
{
    float factor = a->job->scale;
    if (a->job->softcap > 0.0f) {
        attend_softcap(a, r);
        factor = 1.0f;
    }
    if (lo == 0 && hi == KEYS_TILE)
        attend_softmax(a, r, factor, SEES_ALL, 0, KEYS_TILE);
    else if (lo == 0)
        attend_softmax(a, r, factor, SEES_FIRST, 0, hi);
    else
        attend_softmax(a, r, factor, SEES_MIDDLE, lo, hi);
}

typedef struct {
    const uint8_t *k[KEYS_TILE / KKV_BLOCK_TOKENS], *v[KEYS_TILE / KKV_BLOCK_TOKENS];
} tile_pages_t;

/* Where the pages of entries [tile, tile + n_keys) are, in the cache or in scratch. */
static void attend_pages(const attend_t *a, const kpass_t *pass, uint32_t tile, uint32_t n_keys,
                         tile_pages_t *out)
{
    const kpages_t *pages = pass->pages;
    bool gathered = pass->list != NULL || pages->rows;
    bool turned = pages->value_dim > 0 && (gathered || pages->values_in_keys);
    size_t value_bytes = a->f32 ? 4 : 2;
    size_t k_bytes = (size_t)a->dim * KKV_BLOCK_TOKENS * value_bytes;
    size_t v_bytes = (size_t)a->dim16 * KKV_BLOCK_TOKENS * value_bytes;
    uint8_t *k_scratch = a->job->scratch;
    uint8_t *v_scratch = k_scratch + ATTEND_TILE_BYTES / 2;
    uint32_t n_pages = (n_keys + KKV_BLOCK_TOKENS - 1) / KKV_BLOCK_TOKENS;
    for (uint32_t b = 0; b < KEYS_TILE / KKV_BLOCK_TOKENS; b++) {
        /* Scores of pages past the last one are computed from the first and then not looked at. */
        uint32_t at = b < n_pages ? b : 0;
        if (!gathered) {
            uint32_t block = pass->blocks[tile / KKV_BLOCK_TOKENS + at];
            out->k[b] = pass->base + block * pass->block_stride;
        } else {
            out->k[b] = k_scratch + at * k_bytes;
        }
        out->v[b] = turned ? v_scratch + at * v_bytes : out->k[b] + pages->k_bytes;
    }
    if (gathered)
        stage_gather(pass, tile, n_keys, k_scratch, v_scratch);
    else if (turned)
        stage_values(pass, tile, n_keys, v_scratch);
}

/* One tile for one group of pairs. */
static void attend_tile(attend_t *a, const kpass_t *pass, uint32_t tile, uint32_t n_keys,
                        const tile_pages_t *pages)
{
    const uint32_t *first = pass->first + a->at, *end = pass->end + a->at;
    if (a->f32)
        scores_f32(a, pages->k, (n_keys + KKV_BLOCK_TOKENS - 1) / KKV_BLOCK_TOKENS);
    else
        scores_bf16(a, pages->k);
    for (uint32_t r = 0; r < a->n; r++) {
        uint32_t lo = first[r] > tile ? first[r] - tile : 0;
        uint32_t hi = end[r] > tile ? end[r] - tile : 0;
        hi = hi < n_keys ? hi : n_keys;
        if (lo < hi) {
            attend_row(a, r, lo, hi);
            continue;
        }
        memset(a->s[r], 0, sizeof a->s[r]);
        memset(a->p[r], 0, sizeof a->p[r]);
    }
    if (a->f32)
        values_f32(a, pages->v, n_keys);
    else
        values_bf16(a, pages->v, (n_keys + 1) / 2);
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

static void open_chunk(attend_t *a)
{
    for (uint32_t r = 0; r < a->n; r++) {
        a->m[r] = -INFINITY;
        a->l[r] = vf_set(0);
        memset(a->o[r], 0, a->dim16 * sizeof a->o[r][0]);
    }
}

static void close_chunk(attend_t *a, const kpass_t *pass, uint32_t chunk, uint32_t chunk_end)
{
    const uint32_t *first = pass->first + a->at, *end = pass->end + a->at;
    for (uint32_t r = 0; r < a->n; r++)
        if (first[r] < chunk_end && end[r] > chunk && first[r] < end[r])
            attend_merge(a, r);
}

static void attend_pass(attend_t *groups, uint32_t n_groups, const kpass_t *pass)
{
    uint32_t first = UINT32_MAX, n_keys = 0;
    for (uint32_t r = 0; r < groups->job->n; r++) {
        if (pass->first[r] >= pass->end[r])
            continue;
        first = pass->first[r] < first ? pass->first[r] : first;
        n_keys = pass->end[r] > n_keys ? pass->end[r] : n_keys;
    }
    for (uint32_t chunk = first / KEYS_CHUNK * KEYS_CHUNK; chunk < n_keys; chunk += KEYS_CHUNK) {
        uint32_t chunk_end = n_keys - chunk < KEYS_CHUNK ? n_keys : chunk + KEYS_CHUNK;
        for (uint32_t g = 0; g < n_groups; g++)
            open_chunk(&groups[g]);
        uint32_t tile = first > chunk ? first / KEYS_TILE * KEYS_TILE : chunk;
        for (; tile < chunk_end; tile += KEYS_TILE) {
            uint32_t n = chunk_end - tile < KEYS_TILE ? chunk_end - tile : KEYS_TILE;
            tile_pages_t pages;
            attend_pages(groups, pass, tile, n, &pages);
            for (uint32_t g = 0; g < n_groups; g++)
                attend_tile(&groups[g], pass, tile, n, &pages);
        }
        for (uint32_t g = 0; g < n_groups; g++)
            close_chunk(&groups[g], pass, chunk, chunk_end);
    }
}

static void open_group(attend_t *a, const kattend_t *job, uint32_t at)
{
    const kpages_t *pages = job->pass[0].pages;
    a->job = job;
    a->at = at;
    a->n = job->n - at < ATTEND_ROWS ? job->n - at : ATTEND_ROWS;
    a->f32 = pages->mode == KMODE_F32;
    a->dim = pages->key_dim;
    a->dim16 = pages->dim16;
    for (uint32_t r = 0; r < a->n; r++) {
        /* Sinks come first in the merging of states, too. */
        const float *sink = job->state[at + r] == NULL ? job->sinks[at + r] : NULL;
        a->m_all[r] = sink != NULL ? *sink * LOG2_E : -INFINITY;
        a->l_all[r] = sink != NULL ? 1.0f : 0.0f;
        memset(a->o_all[r], 0, a->dim16 * sizeof a->o_all[r][0]);
    }
}

static void close_group(const attend_t *a)
{
    uint32_t dim = a->job->pass[0].pages->value_dim;
    for (uint32_t r = 0; r < a->n; r++) {
        float *state = a->job->state[a->at + r];
        if (state != NULL) {
            state[0] = a->m_all[r];
            state[1] = a->l_all[r];
            memcpy(state + LINE, a->o_all[r], a->dim16 * sizeof *state);
            continue;
        }
        vf_t inverse = vf_set(1.0f / a->l_all[r]);
        for (uint32_t d = 0; d < dim; d += 16)
            vf_store_n(a->job->out[a->at + r] + d, vf_mul(vf_load(a->o_all[r] + d), inverse),
                       dim - d);
    }
}

_Static_assert(sizeof(attend_t) * (ATTEND_PAIRS / ATTEND_ROWS) <=
                   ATTEND_SCRATCH_BYTES - ATTEND_TILE_BYTES,
               "all groups have room in the scratch");

static void attend_vec(const kattend_t *job)
{
    attend_t *groups = (attend_t *)(void *)(job->scratch + ATTEND_TILE_BYTES);
    uint32_t n = (job->n + ATTEND_ROWS - 1) / ATTEND_ROWS;
    for (uint32_t g = 0; g < n; g++) {
        open_group(&groups[g], job, g * ATTEND_ROWS);
        attend_load_q(&groups[g]);
    }
    for (uint32_t i = 0; i < job->n_passes; i++)
        attend_pass(groups, n, &job->pass[i]);
    for (uint32_t g = 0; g < n; g++)
        close_group(&groups[g]);
}

/* A state is what merging its chunk alone gives, so merging it has the bits of merging the chunk: a
 * sum of lanes with one value is that value, and no element of O is -0 any more. */
static void merge_vec(const kattend_t *job, const float *states, size_t stride, uint32_t n)
{
    attend_t *a = (attend_t *)(void *)(job->scratch + ATTEND_TILE_BYTES);
    open_group(a, job, 0);
    for (uint32_t i = 0; i < n; i++, states += stride) {
        float lanes[16] = {states[1]};
        a->m[0] = states[0];
        a->l[0] = vf_load(lanes);
        memcpy(a->o[0], states + LINE, a->dim16 * sizeof *states);
        attend_merge(a, 0);
    }
    close_group(a);
}

/* Index scores: a tile of keys at a time, all heads over it; the sum over heads ascends. */
static void score_vec(const kscore_t *job)
{
    attend_t *a = (attend_t *)(void *)(job->scratch + ATTEND_TILE_BYTES);
    kattend_t heads = {.scratch = job->scratch};
    const kpass_t *pass = &job->pass;
    a->job = &heads;
    a->at = 0;
    a->f32 = pass->pages->mode == KMODE_F32;
    a->dim = pass->pages->key_dim;
    a->dim16 = 0;
    vf_t scale = vf_set(job->scale);
    for (uint32_t tile = pass->first[0]; tile < pass->end[0]; tile += KEYS_TILE) {
        uint32_t n = pass->end[0] - tile < KEYS_TILE ? pass->end[0] - tile : KEYS_TILE;
        tile_pages_t pages;
        attend_pages(a, pass, tile, n, &pages);
        float sums[KEYS_TILE] = {0};
        for (uint32_t h = 0; h < job->n_heads; h += a->n) {
            a->n = job->n_heads - h < ATTEND_ROWS ? job->n_heads - h : ATTEND_ROWS;
            for (uint32_t r = 0; r < a->n; r++)
                heads.q[r] = job->q + (size_t)(h + r) * a->dim;
            attend_load_q(a);
            if (a->f32)
                scores_f32(a, pages.k, (n + KKV_BLOCK_TOKENS - 1) / KKV_BLOCK_TOKENS);
            else
                scores_bf16(a, pages.k);
            for (uint32_t r = 0; r < a->n; r++) {
                vf_t weight = vf_set(job->w[h + r] * job->weight_scale);
                for (uint32_t i = 0; i < n; i += 16) {
                    vf_t x = vf_mul(vf_load(a->s[r] + i), scale);
                    x = vf_max(x, vf_set(0));
                    vf_store(sums + i, vf_fma(weight, x, vf_load(sums + i)));
                }
            }
        }
        memcpy(job->scores_out + tile, sums, n * sizeof sums[0]);
    }
}
