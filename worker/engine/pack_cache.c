/* See pack_cache.h; the file itself is pack_cache_file.h's. */
#include "worker/engine/pack_cache.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/digest.h"
#include "common/base/log.h"
#include "common/base/memory.h"
#include "worker/engine/pack_cache_file.h"

struct pack_cache {
    char *dir, *path, *key;
    uint64_t bytes_max, bytes_min;

    /* The file that there was; fd -1 without one. */
    int fd;
    pack_file_head_t head;
    uint8_t *table;
    const pack_file_entry_t *found;
    size_t next;  /* of the entries: the one that should be asked for */
    bool spoiled; /* not all weights came from it */

    pack_file_image_t *images; /* what was noted */
    size_t n, capacity;
    pthread_t writer;
    bool writing;
};

static void drop_file(pack_cache_t *cache)
{
    if (cache->fd >= 0)
        close(cache->fd);
    cache->fd = -1;
    cache->spoiled = true;
    free(cache->table);
    cache->table = NULL;
    cache->found = NULL;
}

pack_cache_t *pack_cache_open(const pack_cache_config_t *config)
{
    CHECK(strlen(config->key) < PACK_CACHE_KEY_MAX);
    pack_cache_t *cache = MEM_NEW(pack_cache_t);
    char hex[DIGEST_HEX_SIZE];
    const char *why;
    digest_of_bytes(config->key, strlen(config->key), hex);
    cache->dir = mem_strdup(config->dir);
    cache->key = mem_strdup(config->key);
    cache->path = mem_format("%s/%.32s.weights", config->dir, hex);
    cache->bytes_max = config->bytes_max;
    cache->bytes_min = config->bytes_min;
    cache->fd = pack_file_open(cache->path, cache->key, &cache->head, &cache->table, &why);
    cache->spoiled = cache->fd < 0;
    if (why != NULL)
        log_warn("%s: %s; weights are packed anew", cache->path, why);
    return cache;
}

/* In pieces, because the system cuts larger wishes short. */
static void fetch(const pack_cache_t *cache, const pack_file_entry_t *entry)
{
    enum { WANT_BYTES = 128 << 10 };
    for (uint64_t at = 0; at < entry->bytes; at += WANT_BYTES)
        posix_fadvise(cache->fd, (off_t)(entry->offset + at), WANT_BYTES, POSIX_FADV_WILLNEED);
}

size_t pack_cache_find(pack_cache_t *cache, const char *id)
{
    if (cache->fd < 0)
        return 0;
    const pack_file_entry_t *entries = (const pack_file_entry_t *)(const void *)cache->table;
    cache->found = cache->next < cache->head.n_entries ? &entries[cache->next++] : NULL;
    if (cache->found != NULL && memcmp(cache->found->id, id, PACK_FILE_DIGITS) == 0) {
        if (cache->next == 1)
            fetch(cache, cache->found);
        if (cache->next < cache->head.n_entries) /* while this one is being read */
            fetch(cache, &entries[cache->next]);
        return (size_t)cache->found->bytes;
    }
    pack_cache_spoiled(cache);
    return 0;
}

bool pack_cache_read(void *argument, size_t index, void *piece_out, size_t n)
{
    const pack_cache_t *cache = argument;
    const pack_file_entry_t *found = cache->found;
    CHECK(found != NULL && n <= KIMAGE_PIECE && index * KIMAGE_PIECE + n <= found->bytes);
    uint64_t offset = found->offset + (uint64_t)index * KIMAGE_PIECE;
    for (size_t done = 0; done < n;) {
        ssize_t got = pread(cache->fd, (uint8_t *)piece_out + done, n - done,
                            (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        done += (size_t)got;
    }
    const uint8_t *wanted = cache->table + cache->head.n_entries * sizeof *found +
                            (found->piece_first + index) * PACK_FILE_DIGITS;
    char digits[PACK_FILE_DIGITS];
    pack_file_digest(piece_out, n, digits);
    return memcmp(digits, wanted, sizeof digits) == 0;
}

void pack_cache_spoiled(pack_cache_t *cache)
{
    if (cache->fd >= 0)
        log_warn("%s: a weight is damaged or not there; weights are packed anew", cache->path);
    drop_file(cache);
}

void pack_cache_note(pack_cache_t *cache, const char *id, const void *image, size_t bytes)
{
    MEM_GROW(cache->images, cache->capacity, cache->n + 1);
    pack_file_image_t *noted = &cache->images[cache->n++];
    *noted = (pack_file_image_t){.image = image, .bytes = bytes};
    memcpy(noted->id, id, PACK_FILE_DIGITS);
}

static void *write_file(void *argument)
{
    pack_cache_t *cache = argument;
    uint64_t bytes = pack_file_size(cache->images, cache->n);
    if (!pack_file_make_room(cache->dir, cache->path, bytes, cache->bytes_max))
        log_warn("%s: no room to keep %llu MiB of packed weights under the limit of %llu MiB",
                 cache->dir, (unsigned long long)(bytes >> 20),
                 (unsigned long long)(cache->bytes_max >> 20));
    else if (!pack_file_write(cache->path, cache->key, cache->images, cache->n))
        log_warn("%s: packed weights cannot be kept: %s", cache->path, strerror(errno));
    else
        log_info("%s: %llu MiB of packed weights are kept for the next start", cache->path,
                 (unsigned long long)(bytes >> 20));
    return NULL;
}

void pack_cache_finish(pack_cache_t *cache)
{
    uint64_t bytes = pack_file_size(cache->images, cache->n);
    if (cache->fd >= 0 && cache->next == cache->head.n_entries) {
        futimens(cache->fd, NULL); /* used now: the last to go */
        drop_file(cache);
        return;
    }
    drop_file(cache);
    if (cache->n == 0 || cache->n > PACK_CACHE_WEIGHTS_MAX || bytes < cache->bytes_min)
        return;
    if (mkdir(cache->dir, 0700) != 0 && errno != EEXIST) {
        log_warn("%s: cannot be made: %s", cache->dir, strerror(errno));
        return;
    }
    sigset_t all, before; /* signals are for the other threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    cache->writing = pthread_create(&cache->writer, NULL, write_file, cache) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void pack_cache_close(pack_cache_t *take_cache)
{
    if (take_cache == NULL)
        return;
    if (take_cache->writing)
        pthread_join(take_cache->writer, NULL);
    drop_file(take_cache);
    free(take_cache->images);
    free(take_cache->dir);
    free(take_cache->path);
    free(take_cache->key);
    free(take_cache);
}
