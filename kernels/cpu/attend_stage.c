/* Tiles of keys and values that do not lie in the cache as the fast kernels read them: entries that
 * a list selects, caches with rows, and values that are the beginnings of keys. They are brought
 * into the ordinary layout of four pages first; values are copied as they are, so no bit changes.
 *
 * Slots behind the last entry keep what an earlier tile left there. Like everything in a cache that
 * is finite, and p = +0 multiplies it. */
#include "kernels/cpu/pages.h"

static const uint8_t *page_of(const kpass_t *pass, uint32_t entry)
{
    uint32_t block = pass->blocks[entry_block(pass->pages, entry)];
    return pass->base + block * pass->block_stride;
}

static void gather_bf16(const kpages_t *pages, const uint8_t *page, uint32_t slot, uint32_t to,
                        uint8_t *k_page, uint8_t *v_page)
{
    for (uint32_t d = 0; d < pages->key_dim; d += 2)
        memcpy(k_page + ((size_t)(d / 2) * KKV_BLOCK_TOKENS + to) * 4,
               page + key_at(pages, slot, d), 4);
    for (uint32_t d = 0; d < pages->value_dim; d++)
        memcpy(v_page + value_at(pages, to, d),
               pages->values_in_keys ? page + key_at(pages, slot, d)
                                     : page + pages->k_bytes + value_at(pages, slot, d),
               2);
}

static void gather_f32(const kpages_t *pages, const uint8_t *page, uint32_t slot, uint32_t to,
                       uint8_t *k_page, uint8_t *v_page)
{
    for (uint32_t d = 0; d < pages->key_dim; d++)
        memcpy(k_page + ((size_t)d * KKV_BLOCK_TOKENS + to) * 4, page + key_at(pages, slot, d), 4);
    for (uint32_t d = 0; d < pages->value_dim; d++)
        memcpy(v_page + value_at(pages, to, d),
               pages->values_in_keys ? page + key_at(pages, slot, d)
                                     : page + pages->k_bytes + value_at(pages, slot, d),
               4);
}

void stage_gather(const kpass_t *pass, uint32_t tile, uint32_t n, uint8_t *k_out, uint8_t *v_out)
{
    const kpages_t *pages = pass->pages;
    size_t k_bytes = (size_t)pages->key_dim * KKV_BLOCK_TOKENS * key_bytes(pages);
    size_t v_bytes = (size_t)pages->dim16 * KKV_BLOCK_TOKENS * key_bytes(pages);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t entry = pass->list != NULL ? pass->list[tile + i] : tile + i;
        uint32_t b = i / KKV_BLOCK_TOKENS, slot = entry_slot(pages, entry);
        (pages->mode == KMODE_F32 ? gather_f32 : gather_bf16)(
            pages, page_of(pass, entry), slot, i % KKV_BLOCK_TOKENS, k_out + b * k_bytes,
            v_out + b * v_bytes);
    }
}

/* Two tokens' dimension pairs (a b) (c d) become (a c) (b d): 64 bits at a time. */
static void turn_bf16(const kpages_t *pages, const uint8_t *page, uint8_t *v_page)
{
    for (uint32_t pair = 0; pair < KKV_BLOCK_TOKENS / 2; pair++)
        for (uint32_t d = 0; d < pages->value_dim; d += 2) {
            uint32_t from[2], to[2];
            memcpy(from, page + ((size_t)(d / 2) * KKV_BLOCK_TOKENS + 2 * pair) * 4, sizeof from);
            to[0] = (from[0] & 0xffffu) | from[1] << 16;
            to[1] = from[0] >> 16 | (from[1] & 0xffff0000u);
            /* dim16 is even, so the odd dimension behind an odd value_dim has its place. */
            memcpy(v_page + ((size_t)pair * pages->dim16 + d) * 4, to, sizeof to);
        }
}

static void turn_f32(const kpages_t *pages, const uint8_t *page, uint8_t *v_page)
{
    for (uint32_t slot = 0; slot < KKV_BLOCK_TOKENS; slot++)
        for (uint32_t d = 0; d < pages->value_dim; d++)
            memcpy(v_page + ((size_t)slot * pages->dim16 + d) * 4,
                   page + ((size_t)d * KKV_BLOCK_TOKENS + slot) * 4, 4);
}

void stage_values(const kpass_t *pass, uint32_t tile, uint32_t n, uint8_t *v_out)
{
    const kpages_t *pages = pass->pages;
    size_t v_bytes = (size_t)pages->dim16 * KKV_BLOCK_TOKENS * key_bytes(pages);
    for (uint32_t i = 0; i < n; i += KKV_BLOCK_TOKENS, v_out += v_bytes)
        (pages->mode == KMODE_F32 ? turn_f32 : turn_bf16)(pages, page_of(pass, tile + i), v_out);
}
