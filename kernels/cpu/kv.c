/* The paged KV cache: where a head of a token lies, and how it is written. The layout (internal.h,
 * kpages_t) puts 16 tokens of a dimension pair side by side for the scores, and 16 dimensions of a
 * token pair side by side for the values, so that both products read whole lines. */
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/kv_ahead.h"
#include "kernels/cpu/pages.h"

static kpages_t pages_of(kmode_t mode, const kkv_shape_t *shape)
{
    bool apart = shape->key_dim > 0;
    uint32_t rate = shape->rate > 1 ? shape->rate : 1;
    kpages_t pages = {.mode = shape->exact ? KMODE_F32 : mode,
                      .rows = shape->exact || rate > 1,
                      .values_in_keys = apart && shape->values_in_keys,
                      .key_dim = apart ? shape->key_dim : shape->head_dim,
                      .value_dim = apart ? shape->value_dim : shape->head_dim,
                      .rate = rate,
                      .slots = rate < KKV_BLOCK_TOKENS ? KKV_BLOCK_TOKENS / rate : 1,
                      .n_kv_heads = shape->n_kv_heads,
                      .n_blocks = shape->n_blocks,
                      .n_layers = shape->n_layers};
    if (pages.mode == KMODE_NATIVE)
        pages.type = shape->type;
    pages.dim16 = (pages.value_dim + 15) / 16 * 16;
    size_t value_bytes = key_bytes(&pages), scales_bytes = 0;
    if (pages.type != KKV_BF16)
        scales_bytes = KKV_BLOCK_TOKENS * sizeof(float);
    pages.k_bytes = (size_t)pages.key_dim * pages.slots * value_bytes;
    if (pages.rows || scales_bytes > 0) /* pages and scales start at whole lines */
        pages.k_bytes = (pages.k_bytes + 63) / 64 * 64;
    pages.k_bytes += scales_bytes;
    if (!pages.values_in_keys)
        pages.v_bytes = (size_t)pages.dim16 * KKV_BLOCK_TOKENS * value_bytes + scales_bytes;
    return pages;
}

size_t kv_block_bytes(kmode_t mode, const kkv_shape_t *shape)
{
    kpages_t pages = pages_of(mode, shape);
    return kv_layer_block_bytes(&pages) * shape->n_layers;
}

static status_t check_shape(kmode_t mode, const kkv_shape_t *shape)
{
    bool apart = shape->key_dim > 0;
    if (shape->type != KKV_BF16 && (mode == KMODE_F32 || shape->exact || shape->rate > 1 ||
                                    (apart && (shape->values_in_keys || !shape->value_dim))))
        return fail(STATUS_UNSUPPORTED, "a KV cache of 8-bit codes is one of native activations, "
                                        "with an ordinary key and value for each position");
    kpages_t pages = pages_of(KMODE_F32, shape);
    uint32_t most = shape->exact ? KEXACT_DIM_MAX : KHEAD_DIM_MAX;
    if (pages.key_dim < 2 || pages.key_dim > most || pages.key_dim % 2 != 0)
        return fail(STATUS_UNSUPPORTED, "head dimension %u: even ones up to %u can be computed",
                    pages.key_dim, most);
    if (pages.value_dim > KHEAD_DIM_MAX)
        return fail(STATUS_UNSUPPORTED, "value dimension %u: up to %d can be computed",
                    pages.value_dim, KHEAD_DIM_MAX);
    if (pages.values_in_keys && (pages.value_dim < 1 || pages.value_dim > pages.key_dim))
        return fail(STATUS_INVALID, "values of %u dimensions cannot lie in keys of %u",
                    pages.value_dim, pages.key_dim);
    if (pages.rate > KCOMPRESS_RATE_MAX || (pages.rate & (pages.rate - 1)) != 0)
        return fail(STATUS_UNSUPPORTED, "an entry for %u positions: powers of two up to %d can be",
                    pages.rate, KCOMPRESS_RATE_MAX);
    if (pages.rows && pages.v_bytes > 0)
        return fail(STATUS_UNSUPPORTED, "a cache of rows has no values beside its keys");
    if (shape->n_layers > 4096 || shape->n_kv_heads > 4096 || shape->n_blocks > 1u << 28)
        return fail(STATUS_INVALID, "a KV cache of %u layers, %u heads and %u blocks",
                    shape->n_layers, shape->n_kv_heads, shape->n_blocks);
    return STATUS_OK;
}

/* Each layer's first block, the one that a replica's first sequence gets: a huge page for each
 * layer is cleared here, while the rank loads, and not inside its first step. */
static void touch_first_blocks(void *arg, uint32_t thread, uint32_t n_threads)
{
    const kpages_t *pages = arg;
    uint32_t first, end;
    pool_slice(pages->n_layers, thread, n_threads, &first, &end);
    for (uint32_t layer = first; layer < end; layer++)
        *(volatile uint8_t *)(pages->data + (kv_page(pages, layer, 0, 0) - pages->data)) = 0;
}

status_t kv_open(kdevice_t *device, const kkv_shape_t *shape, kkv_t **own_out)
{
    TRY(check_shape(device->mode, shape));
    kpages_t pages = pages_of(device->mode, shape);
    if (pages.value_dim == 0 && !shape->exact) /* index keys: a score an entry and thread */
        TRY(device_scratch_reserve(device, (size_t)pool_threads(device->pool) * pages.n_blocks *
                                               pages.slots * sizeof(float)));
    if (pages.v_bytes > 0)
        TRY(device_scratch_reserve(device, attention_states_bytes(device, &pages)));
    kkv_t *kv = MEM_NEW(kkv_t);
    kv->device = device;
    kv->pages = pages_of(device->mode, shape);
    unsigned __int128 bytes =
        (unsigned __int128)kv_block_bytes(device->mode, shape) * shape->n_blocks;
    kv->pages.bytes = (size_t)bytes;
    kv->pages.data = bytes > 1ull << 46 ? NULL : map_pages(kv->pages.bytes);
    if (bytes > 0 && kv->pages.data == NULL) {
        free(kv);
        return fail(STATUS_NO_MEMORY, "no memory for %u KV blocks of %zu bytes", shape->n_blocks,
                    kv_block_bytes(device->mode, shape));
    }
    if (bytes > 0)
        pool_run(device->pool, touch_first_blocks, &kv->pages);
    kv_ahead_add(kv);
    *own_out = kv;
    return STATUS_OK;
}

void kv_close(kkv_t *take_kv)
{
    if (take_kv == NULL)
        return;
    kv_ahead_remove(take_kv);
    unmap_pages(take_kv->pages.data, take_kv->pages.bytes);
    free(take_kv);
}

const uint8_t *kv_page(const kpages_t *pages, uint32_t layer, uint32_t block, uint32_t head)
{
    size_t index = ((size_t)layer * pages->n_blocks + block) * pages->n_kv_heads + head;
    return pages->data + index * (pages->k_bytes + pages->v_bytes);
}

static void put_value(const kpages_t *pages, uint8_t *at, float value)
{
    if (pages->mode == KMODE_F32) {
        memcpy(at, &value, sizeof value);
        return;
    }
    uint16_t half = bf16_round_finite(value);
    memcpy(at, &half, sizeof half);
}

static void round_halves(const float *values, uint32_t n, uint16_t *halves)
{
    for (uint32_t d = 0; d < n; d++)
        halves[d] = bf16_round_finite(values[d]);
}

/* The ordinary layout in native mode, without a question for each value. */
static void put_lanes(const kpages_t *pages, uint8_t *page, uint32_t slot, const float *k,
                      const float *v)
{
    uint16_t halves[KHEAD_DIM_MAX];
    round_halves(k, pages->key_dim, halves);
    for (uint32_t d = 0; d < pages->key_dim; d += 2)
        memcpy(page + ((size_t)(d / 2) * KKV_BLOCK_TOKENS + slot) * 4, halves + d, 4);
    if (pages->v_bytes == 0)
        return;
    uint8_t *values = page + pages->k_bytes + value_at(pages, slot, 0);
    round_halves(v, pages->value_dim, halves);
    for (uint32_t d = 0; d < pages->value_dim; d++)
        memcpy(values + (size_t)d * 4, halves + d, sizeof halves[0]);
}

/* The codes of one head, and their scale. Below 2^-100 all is zero, as in inputs of weights. Adding
 * 1.5 * 2^23 rounds to an integer, half to even, which is then the lowest byte. */
static float put_codes(const kpages_t *pages, const float *x, uint32_t n, uint8_t *codes)
{
    float largest = pages->type == KKV_INT8 ? 127.0f : 448.0f;
    uint32_t most = 0;
    for (uint32_t d = 0; d < n; d++) {
        uint32_t size = float_bits(x[d]) & 0x7fffffffu;
        most = size > most ? size : most;
    }
    if (bits_float(most) < 0x1p-100f) {
        memset(codes, 0, n);
        return 0.0f;
    }
    float id = largest / bits_float(most);
    for (uint32_t d = 0; d < n && pages->type == KKV_INT8; d++)
        codes[d] = (uint8_t)(float_bits(x[d] * id + 0x1.8p23f) & 0xffu);
    for (uint32_t d = 0; d < n && pages->type == KKV_FP8; d++)
        codes[d] = qtype_f32_to_e4m3(x[d] * id);
    return bits_float(most) / largest;
}

static void put_coded(const kpages_t *pages, uint8_t *page, uint32_t slot, const float *k,
                      const float *v)
{
    uint8_t codes[KHEAD_DIM_MAX];
    float scale = put_codes(pages, k, pages->key_dim, codes);
    memcpy(page + key_scales_at(pages) + slot * sizeof scale, &scale, sizeof scale);
    for (uint32_t d = 0; d < pages->key_dim; d += 2)
        memcpy(page + key_at(pages, slot, d), codes + d, 2);
    scale = put_codes(pages, v, pages->value_dim, codes);
    memcpy(page + value_scales_at(pages) + slot * sizeof scale, &scale, sizeof scale);
    uint8_t *values = page + pages->k_bytes + value_at(pages, slot, 0);
    for (uint32_t d = 0; d < pages->value_dim; d++)
        values[2 * d] = codes[d];
}

bool kv_put(const kpages_t *pages, uint32_t layer, uint32_t block, uint32_t head, uint32_t slot,
            const float *k, const float *v)
{
    static const float zeros[KEXACT_DIM_MAX];
    uint8_t *page = pages->data + (kv_page(pages, layer, block, head) - pages->data);
    /* A block is used again by other sequences, whose invisible slots are multiplied by p = +0:
     * what is stored is always finite, so that the product is a zero. */
    bool bad = !values_are_finite(k, pages->key_dim) ||
               (pages->v_bytes > 0 && !values_are_finite(v, pages->value_dim));
    if (bad)
        k = v = zeros;
    if (pages->type != KKV_BF16) {
        put_coded(pages, page, slot, k, v);
        return bad;
    }
    if (!pages->rows && pages->mode == KMODE_NATIVE) {
        put_lanes(pages, page, slot, k, v);
        return bad;
    }
    for (uint32_t d = 0; d < pages->key_dim; d++)
        put_value(pages, page + key_at(pages, slot, d), k[d]);
    for (uint32_t d = 0; pages->v_bytes > 0 && d < pages->value_dim; d++)
        put_value(pages, page + pages->k_bytes + value_at(pages, slot, d), v[d]);
    return bad;
}
