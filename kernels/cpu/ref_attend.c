/* Attention in plain C: the definition (docs/numerics.md, "Attention"). One (row, head) pair at a
 * time: tiles of 64 keys and chunks of 512 at absolute multiples, chunks merged ascending. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/numbers.h"
#include "kernels/cpu/ref.h"

typedef struct {
    float m;
    float l[NUMERICS_LANES];
    float o[KHEAD_DIM_MAX];
} partial_t;

static float load_f32(const uint8_t *from)
{
    float value;
    memcpy(&value, from, sizeof value);
    return value;
}

static uint16_t load_u16(const uint8_t *from)
{
    uint16_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

static const uint8_t *page_of(const kattend_t *job, uint32_t key)
{
    return job->base + job->blocks[key / KKV_BLOCK_TOKENS] * job->block_stride;
}

/* q . k of one key: ascending dimensions, the odd one of a pair first with BF16. */
static float score(const kattend_t *job, const float *q, uint32_t key)
{
    const uint8_t *page = page_of(job, key);
    size_t token = key % KKV_BLOCK_TOKENS;
    float sum = 0;
    if (job->pages->mode == KMODE_F32) {
        for (uint32_t d = 0; d < job->pages->head_dim; d++)
            sum = fmaf(load_f32(page + ((size_t)d * 16 + token) * 4), q[d], sum);
        return sum;
    }
    for (uint32_t d = 0; d < job->pages->head_dim; d += 2) {
        const uint8_t *pair = page + ((size_t)(d / 2) * 16 + token) * 4;
        sum = fmaf(bf16_value(load_u16(pair + 2)), bf16_value(bf16_round(q[d + 1])), sum);
        sum = fmaf(bf16_value(load_u16(pair)), bf16_value(bf16_round(q[d])), sum);
    }
    return sum;
}

static float value_of(const kattend_t *job, uint32_t key, uint32_t d)
{
    const kpages_t *pages = job->pages;
    const uint8_t *page = page_of(job, key) + pages->k_bytes;
    size_t token = key % KKV_BLOCK_TOKENS;
    if (pages->mode == KMODE_F32)
        return load_f32(page + (token * pages->dim16 + d) * 4);
    return bf16_value(load_u16(page + ((token / 2 * pages->dim16 + d) * 2 + token % 2) * 2));
}

/* o += p v over the tile's keys [first, end); the odd key of a pair first with BF16. An invisible
 * slot has p = v = +0. */
static void add_values(const kattend_t *job, uint32_t first, uint32_t end, const float *p, float *o)
{
    bool f32 = job->pages->mode == KMODE_F32;
    for (uint32_t d = 0; d < job->pages->head_dim; d++) {
        float sum = o[d];
        for (uint32_t i = 0; i < KEYS_TILE; i++) {
            uint32_t at = f32 ? i : i ^ 1;
            float v = first + at < end ? value_of(job, first + at, d) : 0.0f;
            sum = fmaf(v, f32 ? p[at] : bf16_value(bf16_round(p[at])), sum);
        }
        o[d] = sum;
    }
}

static void add_tile(const kattend_t *job, const float *q, uint32_t first, uint32_t end,
                     partial_t *part)
{
    float x[KEYS_TILE], p[KEYS_TILE];
    float m = part->m;
    for (uint32_t i = 0; i < end - first; i++) {
        x[i] = score(job, q, first + i) * job->scale;
        m = x[i] > m ? x[i] : m;
    }
    float shrink = exp2_ref(part->m - m);
    part->m = m;
    for (uint32_t i = 0; i < KEYS_TILE; i++)
        p[i] = i < end - first ? exp2_ref(x[i] - m) : 0.0f;
    for (uint32_t i = 0; i < NUMERICS_LANES; i++)
        part->l[i] *= shrink;
    for (uint32_t i = 0; i < KEYS_TILE; i++)
        part->l[i % NUMERICS_LANES] += p[i];
    for (uint32_t d = 0; d < job->pages->head_dim; d++)
        part->o[d] *= shrink;
    add_values(job, first, end, p, part->o);
}

static float tree_of_lanes(float lanes[NUMERICS_LANES])
{
    for (uint32_t distance = 8; distance > 0; distance /= 2)
        for (uint32_t i = 0; i < distance; i++)
            lanes[i] = lanes[i] + lanes[i + distance];
    return lanes[0];
}

/* One row and head over keys [0, n_keys). */
static void attend_row(const kattend_t *job, const float *q, uint32_t n_keys, float *out)
{
    uint32_t dim = job->pages->head_dim;
    float m = -INFINITY, l = 0;
    float o[KHEAD_DIM_MAX] = {0};
    for (uint32_t chunk = 0; chunk < n_keys; chunk += KEYS_CHUNK) {
        partial_t part = {.m = -INFINITY};
        for (uint32_t tile = chunk; tile < chunk + KEYS_CHUNK && tile < n_keys; tile += KEYS_TILE)
            add_tile(job, q, tile, tile + KEYS_TILE < n_keys ? tile + KEYS_TILE : n_keys, &part);
        float most = part.m > m ? part.m : m;
        float a = exp2_ref(m - most);
        float b = exp2_ref(part.m - most);
        l = fmaf(tree_of_lanes(part.l), b, l * a);
        /* Adding +0 makes -0 from a sum of flushed products the same as from invisible slots. */
        for (uint32_t d = 0; d < dim; d++)
            o[d] = fmaf(part.o[d] + 0.0f, b, o[d] * a);
        m = most;
    }
    float r = 1.0f / l;
    for (uint32_t d = 0; d < dim; d++)
        out[d] = o[d] * r;
}

void attend_ref(const kattend_t *job)
{
    for (uint32_t i = 0; i < job->n; i++)
        attend_row(job, job->q[i], job->positions[i] + 1, job->out[i]);
}
