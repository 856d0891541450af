/* Attention in plain C: the definition (docs/numerics.md, "Attention"). One (row, head) pair at a
 * time: tiles of 64 keys and chunks of 512 at absolute multiples, chunks merged ascending. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/pages.h"
#include "kernels/cpu/ref.h"

typedef struct {
    float m;
    float l[NUMERICS_LANES];
    float o[KHEAD_DIM_MAX];
} partial_t;

/* What the chunks of all passes merge into. */
typedef struct {
    float m, l;
    float o[KHEAD_DIM_MAX];
} merged_t;

typedef struct {
    const uint8_t *page;
    uint32_t slot;
} entry_t;

static entry_t entry_of(const kpass_t *pass, uint32_t index)
{
    uint32_t entry = pass->list != NULL ? pass->list[index] : index;
    uint32_t block = pass->blocks[entry_block(pass->pages, entry)];
    return (entry_t){pass->base + block * pass->block_stride, entry_slot(pass->pages, entry)};
}

/* q . k of one key: ascending dimensions, the odd one of a pair first with BF16. */
static float dot_of(const kpass_t *pass, const float *q, uint32_t key)
{
    const kpages_t *pages = pass->pages;
    entry_t entry = entry_of(pass, key);
    float sum = 0;
    if (pages->mode == KMODE_F32) {
        for (uint32_t d = 0; d < pages->key_dim; d++)
            sum = fmaf(page_key(pages, entry.page, entry.slot, d), q[d], sum);
        return sum;
    }
    for (uint32_t d = 0; d < pages->key_dim; d += 2) {
        float odd = page_key(pages, entry.page, entry.slot, d + 1);
        float even = page_key(pages, entry.page, entry.slot, d);
        sum = fmaf(odd, bf16_value(bf16_round(q[d + 1])), sum);
        sum = fmaf(even, bf16_value(bf16_round(q[d])), sum);
    }
    if (pages->type != KKV_BF16)
        return sum * stored_scale(entry.page + key_scales_at(pages), entry.slot);
    return sum;
}

/* The logit as a power of two. */
static float logit_of(const kattend_t *job, float dot)
{
    float x = dot * job->scale;
    return job->softcap > 0.0f ? job->softcap * tanh_ref(x / job->softcap) * LOG2_E : x;
}

/* o += p v over the tile's keys; the odd key of a pair first with BF16. A key outside [lo, hi) has
 * p = v = +0. Of codes p takes the scale. */
static void add_values(const kpass_t *pass, uint32_t tile, uint32_t lo, uint32_t hi, float *p,
                       float *o)
{
    const kpages_t *pages = pass->pages;
    bool f32 = pages->mode == KMODE_F32;
    entry_t entries[KEYS_TILE];
    for (uint32_t i = lo; i < hi; i++) {
        entries[i] = entry_of(pass, tile + i);
        if (pages->type != KKV_BF16)
            p[i] *= stored_scale(entries[i].page + value_scales_at(pages), entries[i].slot);
    }
    for (uint32_t d = 0; d < pages->value_dim; d++) {
        float sum = o[d];
        for (uint32_t i = 0; i < KEYS_TILE; i++) {
            uint32_t at = f32 ? i : i ^ 1;
            bool seen = at >= lo && at < hi;
            float v = seen ? page_value(pages, entries[at].page, entries[at].slot, d) : 0.0f;
            sum = fmaf(v, f32 ? p[at] : bf16_value(bf16_round(p[at])), sum);
        }
        o[d] = sum;
    }
}

/* Keys [lo, hi) of the tile are visible, at least one. */
static void add_tile(const kattend_t *job, const kpass_t *pass, const float *q, uint32_t tile,
                     uint32_t lo, uint32_t hi, partial_t *part)
{
    float x[KEYS_TILE], p[KEYS_TILE];
    float m = part->m;
    for (uint32_t i = lo; i < hi; i++) {
        x[i] = logit_of(job, dot_of(pass, q, tile + i));
        m = x[i] > m ? x[i] : m;
    }
    float shrink = exp2_ref(part->m - m);
    part->m = m;
    for (uint32_t i = 0; i < KEYS_TILE; i++)
        p[i] = i >= lo && i < hi ? exp2_ref(x[i] - m) : 0.0f;
    for (uint32_t i = 0; i < NUMERICS_LANES; i++)
        part->l[i] *= shrink;
    for (uint32_t i = 0; i < KEYS_TILE; i++)
        part->l[i % NUMERICS_LANES] += p[i];
    for (uint32_t d = 0; d < pass->pages->value_dim; d++)
        part->o[d] *= shrink;
    add_values(pass, tile, lo, hi, p, part->o);
}

static float tree_of_lanes(float lanes[NUMERICS_LANES])
{
    for (uint32_t distance = 8; distance > 0; distance /= 2)
        for (uint32_t i = 0; i < distance; i++)
            lanes[i] = lanes[i] + lanes[i + distance];
    return lanes[0];
}

static void merge(merged_t *all, partial_t *part, uint32_t dim)
{
    float most = part->m > all->m ? part->m : all->m;
    float a = exp2_ref(all->m - most);
    float b = exp2_ref(part->m - most);
    all->l = fmaf(tree_of_lanes(part->l), b, all->l * a);
    /* Adding +0 makes -0 from a sum of flushed products the same as from invisible slots. */
    for (uint32_t d = 0; d < dim; d++)
        all->o[d] = fmaf(part->o[d] + 0.0f, b, all->o[d] * a);
    all->m = most;
}

/* Entries [first, end) of one pass. */
static void attend_pass(const kattend_t *job, const kpass_t *pass, const float *q, uint32_t first,
                        uint32_t end, merged_t *all)
{
    for (uint32_t chunk = first / KEYS_CHUNK * KEYS_CHUNK; chunk < end; chunk += KEYS_CHUNK) {
        partial_t part = {.m = -INFINITY};
        for (uint32_t tile = chunk; tile < chunk + KEYS_CHUNK && tile < end; tile += KEYS_TILE) {
            uint32_t lo = first > tile ? first - tile : 0;
            uint32_t hi = end - tile < KEYS_TILE ? end - tile : KEYS_TILE;
            if (lo < hi)
                add_tile(job, pass, q, tile, lo, hi, &part);
        }
        merge(all, &part, pass->pages->value_dim);
    }
}

void attend_ref(const kattend_t *job)
{
    for (uint32_t r = 0; r < job->n; r++) {
        merged_t all = {.m = -INFINITY};
        if (job->sinks[r] != NULL) {
            all.m = *job->sinks[r] * LOG2_E;
            all.l = 1.0f;
        }
        for (uint32_t i = 0; i < job->n_passes; i++) {
            const kpass_t *pass = &job->pass[i];
            if (pass->first[r] < pass->end[r])
                attend_pass(job, pass, job->q[r], pass->first[r], pass->end[r], &all);
        }
        float inverse = 1.0f / all.l;
        for (uint32_t d = 0; d < job->pass[0].pages->value_dim; d++)
            job->out[r][d] = all.o[d] * inverse;
    }
}

void score_ref(const kscore_t *job)
{
    uint32_t dim = job->pass.pages->key_dim;
    for (uint32_t i = job->pass.first[0]; i < job->pass.end[0]; i++) {
        float sum = 0;
        for (uint32_t h = 0; h < job->n_heads; h++) {
            float x = dot_of(&job->pass, job->q + (size_t)h * dim, i) * job->scale;
            sum = fmaf(job->w[h] * job->weight_scale, x > 0.0f ? x : 0.0f, sum);
        }
        job->scores_out[i] = sum;
    }
}
