/* See table.h. A removal moves later entries of the same run back, so no tombstones pile up. */
#include "coordinator/core/table.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "common/base/memory.h"
#include "common/base/status.h"

static size_t find(const table_t *table, const void *key, size_t key_size, uint64_t hash)
{
    size_t mask = table->capacity - 1;
    size_t i = (size_t)hash & mask;
    while (table->entries[i].value) {
        const table_entry_t *e = &table->entries[i];
        if (e->hash == hash && e->key_size == key_size && memcmp(e->key, key, key_size) == 0)
            return i;
        i = (i + 1) & mask;
    }
    return i;
}

static void grow(table_t *table)
{
    table_t bigger = {.capacity = table->capacity ? table->capacity * 2 : 16, .n = table->n};
    bigger.entries = MEM_NEW_ARRAY(table_entry_t, bigger.capacity);
    for (size_t i = 0; i < table->capacity; i++) {
        const table_entry_t *e = &table->entries[i];
        if (e->value)
            bigger.entries[find(&bigger, e->key, e->key_size, e->hash)] = *e;
    }
    free(table->entries);
    *table = bigger;
}

void *table_get(const table_t *table, const void *key, size_t key_size)
{
    if (table->n == 0)
        return NULL;
    return table->entries[find(table, key, key_size, XXH3_64bits(key, key_size))].value;
}

void table_put(table_t *table, const void *key, size_t key_size, void *value)
{
    if ((table->n + 1) * 4 > table->capacity * 3)
        grow(table);
    uint64_t hash = XXH3_64bits(key, key_size);
    size_t i = find(table, key, key_size, hash);
    CHECK(value != NULL && table->entries[i].value == NULL);
    table->entries[i] = (table_entry_t){key, key_size, hash, value};
    table->n++;
}

void *table_remove(table_t *table, const void *key, size_t key_size)
{
    if (table->n == 0)
        return NULL;
    size_t mask = table->capacity - 1;
    size_t hole = find(table, key, key_size, XXH3_64bits(key, key_size));
    void *value = table->entries[hole].value;
    if (!value)
        return NULL;
    table->n--;
    for (size_t i = (hole + 1) & mask; table->entries[i].value; i = (i + 1) & mask) {
        size_t home = (size_t)table->entries[i].hash & mask;
        /* An entry may move back into the hole unless its home lies between hole and itself. */
        bool stays = hole <= i ? (home > hole && home <= i) : (home > hole || home <= i);
        if (stays)
            continue;
        table->entries[hole] = table->entries[i];
        hole = i;
    }
    table->entries[hole] = (table_entry_t){0};
    return value;
}

void *table_next(const table_t *table, size_t *i)
{
    while (*i < table->capacity) {
        void *value = table->entries[(*i)++].value;
        if (value)
            return value;
    }
    return NULL;
}

void table_release(table_t *table)
{
    free(table->entries);
    *table = (table_t){0};
}
