/* Listing a prefix in pages, all at the revision of the first; and waiting for results. */
#include <stdlib.h>
#include <string.h>

#include "common/net/etcd_internal.h"

#define OUT_OF_RANGE 11 /* gRPC's code for a revision that was compacted */
#define RESTARTS_MAX 3

typedef struct {
    etcd_t *etcd;
    char *prefix;
    etcd_done_fn done;
    void *context;
    unsigned restarts;
    int64_t revision; /* of the first page */
    arena_t arena;    /* the collected keys and values */
    etcd_kv_t *kvs;
    size_t n_kvs, kvs_capacity;
} list_t;

static void copy_kv(arena_t *arena, const etcd_kv_t *from, etcd_kv_t *to)
{
    *to = *from;
    to->key = arena_strndup(arena, from->key, from->key_size);
    char *value = arena_new(arena, from->value_size + 1, 1);
    memcpy(value, from->value, from->value_size);
    to->value = (const uint8_t *)value;
}

static void end_list(list_t *list, const etcd_result_t *result)
{
    list->done(list->context, result);
    arena_release(&list->arena);
    free(list->kvs);
    free(list->prefix);
    free(list);
}

static void page_done(void *context, const etcd_result_t *result);

static void next_page(list_t *list)
{
    const char *from = list->prefix;
    size_t size = strlen(list->prefix);
    if (list->n_kvs) {
        /* The key just after the last one is that one with a NUL behind it. */
        from = list->kvs[list->n_kvs - 1].key;
        size = list->kvs[list->n_kvs - 1].key_size + 1;
    } else if (size == 0) {
        size = 1; /* "\0", the first of all keys */
    }
    etcd_page(list->etcd, from, size, list->prefix, list->revision, page_done, list);
}

static void page_done(void *context, const etcd_result_t *result)
{
    list_t *list = context;
    const etcd_full_result_t *full = (const void *)result;
    etcd_result_t end = *result;
    if (result->status != STATUS_OK) {
        if (full->code == OUT_OF_RANGE && list->restarts++ < RESTARTS_MAX) {
            /* Compacted between two pages: what was read so far is too old to go on from. */
            list->n_kvs = 0;
            list->revision = 0;
            arena_release(&list->arena);
            next_page(list);
            return;
        }
        end_list(list, &end);
        return;
    }
    if (!list->revision)
        list->revision = result->revision;
    MEM_GROW(list->kvs, list->kvs_capacity, list->n_kvs + result->n_kvs);
    for (size_t i = 0; i < result->n_kvs; i++)
        copy_kv(&list->arena, &result->kvs[i], &list->kvs[list->n_kvs++]);
    if (full->more && list->n_kvs > ETCD_LIST_KEYS_MAX) {
        end.status = STATUS_EXHAUSTED;
        end.message = "more keys under the prefix than a list may hold";
    } else if (full->more && result->n_kvs) {
        next_page(list);
        return;
    }
    etcd_full_result_t whole = {.public_part = end};
    whole.public_part.revision = list->revision;
    whole.public_part.kvs = list->kvs;
    whole.public_part.n_kvs = end.status == STATUS_OK ? list->n_kvs : 0;
    end_list(list, &whole.public_part);
}

void etcd_list(etcd_t *etcd, const char *prefix, etcd_done_fn done, void *context)
{
    list_t *list = MEM_NEW(list_t);
    list->etcd = etcd;
    list->prefix = mem_strdup(prefix);
    list->done = done;
    list->context = context;
    next_page(list);
}

/* ---- waiting ---- */

struct etcd_waiter {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool ended;
    status_t status;
    char *message;
    etcd_result_t *result;
};

/* A copy that etcd_result_free releases: the arena lies behind the result. */
typedef struct {
    etcd_result_t result;
    arena_t arena;
} owned_t;

static etcd_result_t *copy_result(const etcd_result_t *from)
{
    owned_t *owned = MEM_NEW(owned_t);
    owned->result = *from;
    owned->result.message = arena_strndup(&owned->arena, from->message, strlen(from->message));
    etcd_kv_t *kvs = ARENA_NEW_ARRAY(&owned->arena, etcd_kv_t, from->n_kvs + 1);
    for (size_t i = 0; i < from->n_kvs; i++)
        copy_kv(&owned->arena, &from->kvs[i], &kvs[i]);
    owned->result.kvs = kvs;
    return &owned->result;
}

void etcd_result_free(etcd_result_t *take_result)
{
    if (!take_result)
        return;
    owned_t *owned = (owned_t *)(void *)take_result;
    arena_release(&owned->arena);
    free(owned);
}

etcd_waiter_t *etcd_waiter_new(void)
{
    etcd_waiter_t *waiter = MEM_NEW(etcd_waiter_t);
    pthread_mutex_init(&waiter->lock, NULL);
    pthread_cond_init(&waiter->changed, NULL);
    return waiter;
}

void etcd_wait_done(void *context, const etcd_result_t *result)
{
    etcd_waiter_t *waiter = context;
    pthread_mutex_lock(&waiter->lock);
    waiter->ended = true;
    waiter->status = result->status;
    waiter->message = mem_strdup(result->message);
    if (result->status == STATUS_OK)
        waiter->result = copy_result(result);
    pthread_cond_signal(&waiter->changed);
    pthread_mutex_unlock(&waiter->lock);
}

status_t etcd_wait(etcd_waiter_t *take_waiter, etcd_result_t **own_result_out)
{
    etcd_waiter_t *waiter = take_waiter;
    pthread_mutex_lock(&waiter->lock);
    while (!waiter->ended)
        pthread_cond_wait(&waiter->changed, &waiter->lock);
    pthread_mutex_unlock(&waiter->lock);
    status_t status = waiter->status;
    if (status != STATUS_OK)
        (fail)(status, "%s", waiter->message);
    if (status == STATUS_OK && own_result_out)
        *own_result_out = waiter->result;
    else
        etcd_result_free(waiter->result);
    free(waiter->message);
    pthread_mutex_destroy(&waiter->lock);
    pthread_cond_destroy(&waiter->changed);
    free(waiter);
    return status;
}
