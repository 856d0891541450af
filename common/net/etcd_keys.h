/* What a watch knows of the keys under its prefix: a hash table from key to revisions. Values are
 * not kept; whoever needs them keeps them in the form it needs. Loop only. */
#ifndef SHOAL_COMMON_NET_ETCD_KEYS_H
#define SHOAL_COMMON_NET_ETCD_KEYS_H

#include "common/net/etcd_internal.h"

typedef struct {
    char *key; /* NULL: free; of key_size bytes and a NUL */
    size_t key_size;
    uint64_t hash;
    int64_t create_revision, mod_revision;
    bool seen; /* by the list that is being compared */
} etcd_known_t;

typedef struct {
    etcd_known_t *slots; /* a power of two, linear probing */
    size_t n_slots, n_keys;
} etcd_keys_t;

etcd_known_t *etcd_keys_find(etcd_keys_t *keys, const char *key, size_t key_size);
/* Adds or changes; returns the slot, valid until the next change. */
etcd_known_t *etcd_keys_put(etcd_keys_t *keys, const etcd_kv_t *kv);
void etcd_keys_remove(etcd_keys_t *keys, etcd_known_t *known);
void etcd_keys_release(etcd_keys_t *keys);

#endif
