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

#include "kernels/cpu/pages.h"

/* Up to ATTEND_ROWS pairs of a call, from pair `at` on. Numbers of a row of which all rows' are
 * computed at once stand in 16 lanes, that of row r in all lanes that are r modulo ATTEND_ROWS. */
typedef struct {
    const kattend_t *job;
    uint32_t at, n;
    bool f32;
    uint32_t dim, dim16; /* of a key; of a value, rounded up to 16 */
    bool sees;           /* whether any row sees a key of the tile: [lo, hi) of it */
    uint32_t lo[ATTEND_ROWS], hi[ATTEND_ROWS];
    union {
        uint32_t pairs[ATTEND_ROWS][KHEAD_DIM_MAX / 2]; /* two BF16 each */
        float f32[ATTEND_ROWS][KHEAD_DIM_MAX];
    } q;
    float s[ATTEND_ROWS][KEYS_TILE]; /* scores, then probabilities */
    uint32_t p[ATTEND_ROWS][KEYS_TILE / 2];
    float m[LINE], shrink[LINE]; /* what the tile's maximum multiplies l and O by */
    vf_t l[ATTEND_ROWS];
    float o[ATTEND_ROWS][KHEAD_DIM_MAX]; /* of the chunk */
    const float *v_scales; /* of the tile's keys, where the cache has codes, or NULL */
    float m_all[LINE], l_all[ATTEND_ROWS];
    float o_all[ATTEND_ROWS][KHEAD_DIM_MAX];
} attend_t;
_Static_assert((int)LINE % (int)ATTEND_ROWS == 0 && (int)ATTEND_ROWS == 4, "as vf_largest_4");

/* Where the pages of a tile are, in the cache or in scratch. */
typedef struct {
    const uint8_t *k[KEYS_TILE / KKV_BLOCK_TOKENS], *v[KEYS_TILE / KKV_BLOCK_TOKENS];
    bool coded; /* then these are the keys' scales */
    float k_scales[KEYS_TILE], v_scales[KEYS_TILE];
} tile_pages_t;

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
        for (uint32_t d = 0; d < a->dim; d += 16)
            keep_query(a, r, d, vf_load_n(q + d, a->dim - d));
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
            vf_t sum = vf_mul(vf_load(a->o[r] + d), vf_set(a->shrink[r]));
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

/* The largest logits of a row, lane by lane; a NaN is passed over. */
static inline __attribute__((always_inline)) vf_t
row_most(const attend_t *a, uint32_t r, vf_t scale, sees_t sees, uint32_t lo, uint32_t hi)
{
    vf_t none = vf_set(-INFINITY), most = none;
    for (uint32_t i = 0; i < KEYS_TILE; i += 16) {
        vf_t x = vf_mul(vf_load(a->s[r] + i), scale);
        most = vf_max(visible_lanes(sees, x, i, lo, hi, none), most);
    }
    return most;
}

/* A row's scores become probabilities, which are added to l. */
static inline __attribute__((always_inline)) void
row_probabilities(attend_t *a, uint32_t r, vf_t scale, sees_t sees, uint32_t lo, uint32_t hi)
{
    vf_t m = vf_set(a->m[r]), zero = vf_set(0);
    vf_t l = vf_mul(a->l[r], vf_set(a->shrink[r]));
    for (uint32_t i = 0; i < KEYS_TILE; i += 32) {
        vf_t x = vf_mul(vf_load(a->s[r] + i), scale);
        vf_t y = vf_mul(vf_load(a->s[r] + i + 16), scale);
        x = visible_lanes(sees, exp2_small(vf_sub(x, m)), i, lo, hi, zero);
        y = visible_lanes(sees, exp2_small(vf_sub(y, m)), i + 16, lo, hi, zero);
        l = vf_add(vf_add(l, x), y);
        if (a->f32) {
            vf_store(a->s[r] + i, x);
            vf_store(a->s[r] + i + 16, y);
        } else {
            if (a->v_scales != NULL) {
                x = vf_mul(x, vf_load(a->v_scales + i));
                y = vf_mul(y, vf_load(a->v_scales + i + 16));
            }
            keep_probabilities(a, r, i, x, y);
        }
    }
    a->l[r] = l;
}

/* Turns all rows' scores into probabilities and folds the tile's maximum and sum into m, shrink and
 * l; O is shrunk where the values are added to it. A row whose maximum stays has a factor of
 * exactly 1, and so has one that sees no key of the tile. */
static inline __attribute__((always_inline)) void
attend_softmax(attend_t *a, float factor, sees_t sees, const uint32_t *lo, const uint32_t *hi)
{
    vf_t scale = vf_set(factor);
    vf_t most0 = row_most(a, 0, scale, sees, lo[0], hi[0]), most1 = most0, most2 = most0;
    vf_t most3 = most0;
    if (a->n > 1)
        most1 = row_most(a, 1, scale, sees, lo[1], hi[1]);
    if (a->n > 2)
        most2 = row_most(a, 2, scale, sees, lo[2], hi[2]);
    if (a->n > 3)
        most3 = row_most(a, 3, scale, sees, lo[3], hi[3]);
    vf_t old = vf_load(a->m);
    vf_t m = vf_max(vf_largest_4(most0, most1, most2, most3), old);
    vf_store(a->m, m);
    vf_store(a->shrink, vf_pick_less(old, m, exp2_small(vf_sub(old, m)), vf_set(1.0f)));
    for (uint32_t r = 0; r < a->n; r++)
        row_probabilities(a, r, scale, sees, lo[r], hi[r]);
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

/* Keys [lo, hi) of the tile are visible to each row; the tile has pages for n_keys. */
static void attend_rows(attend_t *a, const uint32_t *lo, const uint32_t *hi)
{
    float factor = a->job->scale;
    bool from_first = true, all = true;
    for (uint32_t r = 0; r < a->n; r++) {
        from_first &= lo[r] == 0;
        all &= lo[r] == 0 && hi[r] == KEYS_TILE;
        if (a->job->softcap > 0.0f)
            attend_softcap(a, r);
    }
    if (a->job->softcap > 0.0f)
        factor = 1.0f;
    if (all)
        attend_softmax(a, factor, SEES_ALL, lo, hi);
    else if (from_first)
        attend_softmax(a, factor, SEES_FIRST, lo, hi);
    else
        attend_softmax(a, factor, SEES_MIDDLE, lo, hi);
}

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
    out->coded = pages->type != KKV_BF16;
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

#include "kernels/cpu/attend_codes.inc.h"

/* The tile that is read after `pages`, where tiles are read where they lie: of this call, or what
 * the caller says comes behind it. Fetching lines again that are there costs next to nothing. */
static void attend_next(const attend_t *a, const kpass_t *pass, uint32_t tile, uint32_t n_keys,
                        const tile_pages_t *pages, tile_pages_t *out)
{
    const kpages_t *of = pass->pages;
    memcpy(out->k, pages->k, sizeof out->k);
    memcpy(out->v, pages->v, sizeof out->v);
    if (pass->list != NULL || of->rows)
        return;
    const uint8_t *base = a->job->after.base;
    const uint32_t *blocks = a->job->after.blocks;
    uint32_t n = a->job->after.n_blocks;
    if (tile < n_keys) {
        base = pass->base;
        blocks = pass->blocks + tile / KKV_BLOCK_TOKENS;
        n = (n_keys - tile + KKV_BLOCK_TOKENS - 1) / KKV_BLOCK_TOKENS;
    }
    for (uint32_t b = 0; b < KEYS_TILE / KKV_BLOCK_TOKENS && b < n; b++) {
        out->k[b] = base + blocks[b] * pass->block_stride;
        if (!of->values_in_keys)
            out->v[b] = out->k[b] + of->k_bytes;
    }
}

/* Which keys of a tile each row of a group sees. */
static void look_at_tile(attend_t *a, const kpass_t *pass, uint32_t tile, uint32_t n_keys)
{
    const uint32_t *first = pass->first + a->at, *end = pass->end + a->at;
    a->sees = false;
    for (uint32_t r = 0; r < a->n; r++) {
        uint32_t hi = end[r] > tile ? end[r] - tile : 0;
        a->lo[r] = first[r] > tile ? first[r] - tile : 0;
        a->hi[r] = hi < n_keys ? hi : n_keys;
        a->sees |= a->lo[r] < a->hi[r];
    }
}

/* One tile for all groups of pairs: each of the three parts for all of them before the next part,
 * because what one part has to wait for within a group it need not wait for between groups. `next`
 * is the tile whose lines the first group fetches meanwhile. */
static void attend_tile(attend_t *groups, uint32_t n_groups, const kpass_t *pass, uint32_t tile,
                        uint32_t n_keys, const tile_pages_t *pages, const tile_pages_t *next)
{
    for (uint32_t g = 0; g < n_groups; g++) {
        attend_t *a = &groups[g];
        look_at_tile(a, pass, tile, n_keys);
        if (a->sees && a->f32)
            scores_f32(a, pages->k, (n_keys + KKV_BLOCK_TOKENS - 1) / KKV_BLOCK_TOKENS);
        else if (a->sees)
            scores_bf16(a, pages->k, g == 0 ? next->k : pages->k);
        a->v_scales = pages->coded ? pages->v_scales : NULL;
        if (a->sees && pages->coded)
            scale_scores(a, pages->k_scales);
    }
    for (uint32_t g = 0; g < n_groups; g++)
        if (groups[g].sees)
            attend_rows(&groups[g], groups[g].lo, groups[g].hi);
    for (uint32_t g = 0; g < n_groups; g++) {
        attend_t *a = &groups[g];
        if (a->sees && a->f32)
            values_f32(a, pages->v, n_keys);
        else if (a->sees)
            values_bf16(a, pages->v, g == 0 ? next->v : pages->v, (n_keys + 1) / 2);
    }
}

/* Folds the finished chunk of one row into its result, by the factors of old and new. */
static void merge_row_vec(attend_t *a, uint32_t r, float old_factor, float new_factor)
{
    vf_t old = vf_set(old_factor), new = vf_set(new_factor);
    float lanes[16];
    vf_store(lanes, vf_fma(vf_set(vf_tree_sum(a->l[r])), new, vf_mul(vf_set(a->l_all[r]), old)));
    a->l_all[r] = lanes[0];
    for (uint32_t d = 0; d < a->dim16; d += 16) {
        vf_t chunk = vf_add(vf_load(a->o[r] + d), vf_set(0));
        vf_store(a->o_all[r] + d, vf_fma(chunk, new, vf_mul(vf_load(a->o_all[r] + d), old)));
    }
}

/* The same of all rows that have `seen` a key of the chunk. */
static void attend_merge(attend_t *a, const bool *seen)
{
    float old[16], new[16], most[16];
    vf_t m = vf_load(a->m), m_all = vf_load(a->m_all), larger = vf_max(m, m_all);
    vf_store(most, larger);
    vf_store(old, exp2_small(vf_sub(m_all, larger)));
    vf_store(new, exp2_small(vf_sub(m, larger)));
    for (uint32_t r = 0; r < a->n; r++) {
        if (!seen[r])
            continue;
        merge_row_vec(a, r, old[r], new[r]);
        a->m_all[r] = most[r];
    }
}

static void open_chunk(attend_t *a)
{
    vf_store(a->m, vf_set(-INFINITY));
    for (uint32_t r = 0; r < a->n; r++) {
        a->l[r] = vf_set(0);
        memset(a->o[r], 0, a->dim16 * sizeof a->o[r][0]);
    }
}

static void close_chunk(attend_t *a, const kpass_t *pass, uint32_t chunk, uint32_t chunk_end)
{
    const uint32_t *first = pass->first + a->at, *end = pass->end + a->at;
    bool seen[ATTEND_ROWS];
    for (uint32_t r = 0; r < a->n; r++)
        seen[r] = first[r] < chunk_end && end[r] > chunk && first[r] < end[r];
    attend_merge(a, seen);
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
            tile_pages_t pages, next;
            attend_pages(groups, pass, tile, n, &pages);
            attend_next(groups, pass, tile + KEYS_TILE, n_keys, &pages, &next);
            if (pages.coded)
                decode_tile(groups, pass, n, &pages, &next);
            attend_tile(groups, n_groups, pass, tile, n, &pages, &next);
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
    vf_store(a->m_all, vf_set(-INFINITY)); /* of rows that are not there, too */
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
        attend_merge(a, &(bool){true});
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
                scores_bf16(a, pages.k, pages.k);
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
