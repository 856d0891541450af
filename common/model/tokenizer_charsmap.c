/* See tokenizer_charsmap.h. The trie is Darts-clone's: unit i holds in bit 31 "is a value", in bits
 * 0-7 its label, in bit 8 "has a value below", in bits 10-30 the offset (times 256 with bit 9). */
#include "common/model/tokenizer_charsmap.h"

#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/model/unicode.h"

enum { BLOB_BYTES_MAX = 16 << 20 };

struct charsmap {
    uint32_t *units;
    size_t n_units;
    uint8_t *pool; /* replacements, each ended by a NUL; one more NUL follows */
    size_t pool_size;
};

status_t charsmap_create(const uint8_t *blob, size_t n, charsmap_t **own_out)
{
    uint32_t trie_size;
    if (n < sizeof trie_size)
        return fail(STATUS_INVALID, "a precompiled charsmap has %zu bytes; it begins with four", n);
    memcpy(&trie_size, blob, sizeof trie_size);
    if (trie_size % 4 != 0 || trie_size > n - 4 || n > BLOB_BYTES_MAX)
        return fail(STATUS_INVALID, "a precompiled charsmap of %zu bytes has a trie of %u", n,
                    trie_size);
    const uint8_t *pool = blob + 4 + trie_size;
    size_t pool_size = n - 4 - trie_size;
    size_t valid = utf8_valid_prefix(pool, pool_size);
    if (valid < pool_size)
        return fail(STATUS_INVALID, "a precompiled charsmap is not UTF-8 at byte %zu of its texts",
                    valid);
    charsmap_t *map = MEM_NEW(charsmap_t);
    map->n_units = trie_size / 4;
    map->units = MEM_NEW_ARRAY(uint32_t, map->n_units + 1);
    memcpy(map->units, blob + 4, trie_size);
    map->pool_size = pool_size;
    map->pool = MEM_NEW_ARRAY(uint8_t, pool_size + 1);
    memcpy(map->pool, pool, pool_size);
    *own_out = map;
    return STATUS_OK;
}

status_t charsmap_create_base64(const char *text, size_t n, charsmap_t **own_out)
{
    if (n > BLOB_BYTES_MAX)
        return fail(STATUS_INVALID, "a precompiled charsmap has %zu bytes; at most %d are possible",
                    n, BLOB_BYTES_MAX);
    uint8_t *blob = MEM_NEW_ARRAY(uint8_t, n + 4);
    int size = EVP_DecodeBlock(blob, (const uint8_t *)text, (int)n);
    for (size_t i = n; size > 0 && i > 0 && text[i - 1] == '=' && n - i < 2; i--)
        size--; /* EVP counts the padding as bytes */
    status_t status = size < 0 ? fail(STATUS_INVALID, "a precompiled charsmap is not base64")
                               : charsmap_create(blob, (size_t)size, own_out);
    free(blob);
    return status;
}

void charsmap_release(charsmap_t *take_map)
{
    if (take_map == NULL)
        return;
    free(take_map->units);
    free(take_map->pool);
    free(take_map);
}

static size_t offset_of(uint32_t unit)
{
    return (size_t)(unit >> 10) << ((unit & (1u << 9)) >> 6);
}

const uint8_t *charsmap_find(const charsmap_t *map, const uint8_t *text, size_t n, size_t *size_out)
{
    if (map->n_units == 0)
        return NULL;
    size_t at = offset_of(map->units[0]);
    for (size_t i = 0; i < n && text[i] != 0; i++) {
        at ^= text[i];
        if (at >= map->n_units || (map->units[at] & 0x800000FFu) != text[i])
            return NULL;
        uint32_t unit = map->units[at];
        at ^= offset_of(unit);
        if ((unit & 0x100) == 0)
            continue;
        if (at >= map->n_units)
            return NULL;
        size_t start = map->units[at] & 0x7FFFFFFFu;
        if (start > map->pool_size)
            return NULL;
        *size_out = strlen((const char *)map->pool + start);
        /* A replacement that begins inside a character would not be UTF-8. */
        return utf8_valid_prefix(map->pool + start, *size_out) == *size_out ? map->pool + start
                                                                            : NULL;
    }
    return NULL;
}
