/* Where one value of a KV cache lies (internal.h, kpages_t), for the code that reads values one by
 * one: the reference, the gathering of tiles, the compressor. */
#ifndef SHOAL_KERNELS_CPU_PAGES_H
#define SHOAL_KERNELS_CPU_PAGES_H

#include <string.h>

#include "common/base/qtype.h"
#include "kernels/cpu/internal.h"
#include "kernels/cpu/numbers.h"

/* The block of an entry in its sequence's table, and its slot in there. An entry of several
 * positions lies with the last of them. */
static inline uint32_t entry_block(const kpages_t *pages, uint32_t entry)
{
    return (entry * pages->rate + pages->rate - 1) / KKV_BLOCK_TOKENS;
}

static inline uint32_t entry_slot(const kpages_t *pages, uint32_t entry)
{
    return entry % pages->slots;
}

/* Entries that a row at `position` may see. */
static inline uint32_t entries_visible(const kpages_t *pages, uint32_t position)
{
    return (position + 1) / pages->rate;
}

static inline size_t key_bytes(const kpages_t *pages)
{
    if (pages->mode == KMODE_F32)
        return sizeof(float);
    return pages->type == KKV_BF16 ? sizeof(uint16_t) : sizeof(uint8_t);
}

/* Bytes of one block in one layer, of all heads. */
static inline size_t kv_layer_block_bytes(const kpages_t *pages)
{
    return (pages->k_bytes + pages->v_bytes) * pages->n_kv_heads;
}

/* Byte offset of dimension d of a key in its page, and of a value in its V page. */
static inline size_t key_at(const kpages_t *pages, uint32_t slot, uint32_t d)
{
    if (pages->rows)
        return ((size_t)slot * pages->key_dim + d) * key_bytes(pages);
    if (pages->mode == KMODE_F32)
        return ((size_t)d * KKV_BLOCK_TOKENS + slot) * sizeof(float);
    return (((size_t)(d / 2) * KKV_BLOCK_TOKENS + slot) * 2 + d % 2) * key_bytes(pages);
}

static inline size_t value_at(const kpages_t *pages, uint32_t slot, uint32_t d)
{
    if (pages->mode == KMODE_F32)
        return ((size_t)slot * pages->dim16 + d) * sizeof(float);
    return (((size_t)(slot / 2) * pages->dim16 + d) * 2 + slot % 2) * key_bytes(pages);
}

/* Byte offsets of the scales of a page's tokens, in caches of codes. */
static inline size_t key_scales_at(const kpages_t *pages)
{
    return pages->k_bytes - KKV_BLOCK_TOKENS * sizeof(float);
}

static inline size_t value_scales_at(const kpages_t *pages)
{
    return pages->k_bytes + pages->v_bytes - KKV_BLOCK_TOKENS * sizeof(float);
}

static inline float stored_scale(const uint8_t *scales, uint32_t slot)
{
    float scale;
    memcpy(&scale, scales + slot * sizeof scale, sizeof scale);
    return scale;
}

/* In caches of codes a code's own value, without the scale. */
static inline float stored_float(const kpages_t *pages, const uint8_t *at)
{
    uint16_t half;
    float value;
    if (pages->mode == KMODE_F32) {
        memcpy(&value, at, sizeof value);
        return value;
    }
    if (pages->type == KKV_INT8)
        return (float)(int8_t)*at;
    if (pages->type == KKV_FP8)
        return qtype_e4m3_to_f32(*at);
    memcpy(&half, at, sizeof half);
    return bf16_value(half);
}

static inline float page_key(const kpages_t *pages, const uint8_t *page, uint32_t slot, uint32_t d)
{
    return stored_float(pages, page + key_at(pages, slot, d));
}

static inline float page_value(const kpages_t *pages, const uint8_t *page, uint32_t slot,
                               uint32_t d)
{
    if (pages->values_in_keys)
        return page_key(pages, page, slot, d);
    return stored_float(pages, page + pages->k_bytes + value_at(pages, slot, d));
}

#endif
