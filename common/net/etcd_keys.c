/* The hash table of a watch's keys. See etcd_keys.h. */
#include "common/net/etcd_keys.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

static size_t slot_of(const etcd_keys_t *keys, uint64_t hash)
{
    return (size_t)hash & (keys->n_slots - 1);
}

etcd_known_t *etcd_keys_find(etcd_keys_t *keys, const char *key, size_t key_size)
{
    if (!keys->n_slots)
        return NULL;
    uint64_t hash = XXH64(key, key_size, 0);
    for (size_t i = slot_of(keys, hash);; i = (i + 1) & (keys->n_slots - 1)) {
        etcd_known_t *slot = &keys->slots[i];
        if (!slot->key)
            return NULL;
        if (slot->hash == hash && slot->key_size == key_size &&
            memcmp(slot->key, key, key_size) == 0)
            return slot;
    }
}

static void place(etcd_keys_t *keys, etcd_known_t known)
{
    size_t i = slot_of(keys, known.hash);
    while (keys->slots[i].key)
        i = (i + 1) & (keys->n_slots - 1);
    keys->slots[i] = known;
}

static void grow(etcd_keys_t *keys)
{
    etcd_known_t *old = keys->slots;
    size_t n_old = keys->n_slots;
    keys->n_slots = n_old ? 2 * n_old : 16;
    keys->slots = MEM_NEW_ARRAY(etcd_known_t, keys->n_slots);
    for (size_t i = 0; i < n_old; i++)
        if (old[i].key)
            place(keys, old[i]);
    free(old);
}

etcd_known_t *etcd_keys_put(etcd_keys_t *keys, const etcd_kv_t *kv)
{
    etcd_known_t *known = etcd_keys_find(keys, kv->key, kv->key_size);
    if (!known) {
        if (2 * (keys->n_keys + 1) > keys->n_slots)
            grow(keys);
        place(keys, (etcd_known_t){.key = mem_strndup(kv->key, kv->key_size),
                                   .key_size = kv->key_size,
                                   .hash = XXH64(kv->key, kv->key_size, 0)});
        keys->n_keys++;
        known = etcd_keys_find(keys, kv->key, kv->key_size);
    }
    known->create_revision = kv->create_revision;
    known->mod_revision = kv->mod_revision;
    return known;
}

void etcd_keys_remove(etcd_keys_t *keys, etcd_known_t *known)
{
    free(known->key);
    known->key = NULL;
    keys->n_keys--;
    /* Those behind it in the same run may have to move up, or they would not be found. */
    size_t i = (size_t)(known - keys->slots);
    for (size_t j = (i + 1) & (keys->n_slots - 1); keys->slots[j].key;
         j = (j + 1) & (keys->n_slots - 1)) {
        etcd_known_t moved = keys->slots[j];
        keys->slots[j].key = NULL;
        place(keys, moved);
    }
}

void etcd_keys_release(etcd_keys_t *keys)
{
    for (size_t i = 0; i < keys->n_slots; i++)
        free(keys->slots[i].key);
    free(keys->slots);
    *keys = (etcd_keys_t){0};
}
