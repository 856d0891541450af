/* A hash table from bytes to pointers, by linear probing. Keys are borrowed: they live inside the
 * value, so a value is removed before it is freed. Lookup, put and remove are O(1). Not
 * thread-safe. */
#ifndef SHOAL_COORDINATOR_CORE_TABLE_H
#define SHOAL_COORDINATOR_CORE_TABLE_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    const void *key;
    size_t key_size;
    uint64_t hash;
    void *value; /* NULL: the place is free */
} table_entry_t;

/* Zero-initialised is empty and ready. */
typedef struct {
    table_entry_t *entries;
    size_t n, capacity; /* capacity is a power of two, or 0 */
} table_t;

/* NULL when it is not there. */
void *table_get(const table_t *table, const void *key, size_t key_size);
/* The key must not be there yet; value is not NULL. */
void table_put(table_t *table, const void *key, size_t key_size, void *value);
/* Returns the value, or NULL when it was not there. */
void *table_remove(table_t *table, const void *key, size_t key_size);
/* Values in no order: the next at or after place *i, which is moved past it; NULL at the end. The
 * table must not change in between, but the value last given may be freed after the last call. */
void *table_next(const table_t *table, size_t *i);
void table_release(table_t *table);

#endif
