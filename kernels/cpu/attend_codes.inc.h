/* Tiles of caches of codes (docs/numerics.md, "Caches of codes"); a part of attend.inc.h. Codes are
 * exact in BF16, so the products are those of a BF16 cache over decoded tiles; the scales of keys
 * multiply scores, those of values probabilities. A tile is decoded once for all pairs of a call. */

/* Of codes: the tile's pages as BF16 in scratch, and its scales. The lines of the next tile are
 * fetched meanwhile, since nobody else looks at them before it is decoded. */
static void decode_tile(const attend_t *a, const kpass_t *pass, uint32_t n_keys,
                        tile_pages_t *pages, tile_pages_t *next)
{
    const kpages_t *of = pass->pages;
    size_t k_codes = (size_t)of->key_dim * KKV_BLOCK_TOKENS;
    size_t v_codes = (size_t)of->dim16 * KKV_BLOCK_TOKENS, scales = LINE * sizeof(float);
    uint8_t *k_to = a->job->scratch, *v_to = k_to + ATTEND_TILE_BYTES / 2;
    uint32_t n_pages = (n_keys + KKV_BLOCK_TOKENS - 1) / KKV_BLOCK_TOKENS;
    for (uint32_t b = 0; b < KEYS_TILE / KKV_BLOCK_TOKENS; b++) {
        const uint8_t *k = pages->k[b], *v = pages->v[b];
        memcpy(pages->k_scales + b * LINE, k + key_scales_at(of), scales);
        memcpy(pages->v_scales + b * LINE, k + value_scales_at(of), scales);
        uint32_t at = b < n_pages ? b : 0;
        pages->k[b] = k_to + 2 * at * k_codes;
        pages->v[b] = v_to + 2 * at * v_codes;
        if (b >= n_pages)
            continue;
        decode_codes(of->type, k, k_codes, next->k[b], k_to + 2 * b * k_codes);
        decode_codes(of->type, v, v_codes, next->v[b], v_to + 2 * b * v_codes);
        fetch_ahead(next->k[b] + key_scales_at(of));
        fetch_ahead(next->k[b] + value_scales_at(of));
    }
    memcpy(next->k, pages->k, sizeof next->k);
    memcpy(next->v, pages->v, sizeof next->v);
}

static void scale_scores(attend_t *a, const float *k_scales)
{
    for (uint32_t r = 0; r < a->n; r++)
        for (uint32_t i = 0; i < KEYS_TILE; i += 16)
            vf_store(a->s[r] + i, vf_mul(vf_load(a->s[r] + i), vf_load(k_scales + i)));
}
