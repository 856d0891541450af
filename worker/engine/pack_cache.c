/* See pack_cache.h; the file itself is pack_cache_file.h's. */
#include "worker/engine/pack_cache.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/base/digest.h"
#include "common/base/log.h"
#include "common/base/memory.h"
#include "worker/engine/pack_cache_check.h"

struct pack_cache {
    char *dir, *path, *key;
    uint64_t bytes_max, bytes_min;

    /* The file that there was; fd -1 without one, or once it is not to be read any more. */
    int fd;
    int held; /* the same as long as it is mapped, with a shared lock; -1 without a mapping */
    pack_file_head_t head;
    uint8_t *table;
    uint8_t *map; /* the whole file, until the end; NULL without one */
    pack_check_t *check;
    size_t next; /* of the entries: the one that should be asked for */

    pack_file_image_t *images; /* what was noted */
    size_t n, capacity;
    void **copies; /* those of them that are the cache's own */
    size_t n_copies, copies_capacity;
    pthread_t writer;
    bool writing;
};

/* The mapping stays: weights may lie in it. So does the lock, by which those who make room know
 * that the file's bytes would stay on the disk. */
static void drop_file(pack_cache_t *cache)
{
    pack_check_end(cache->check);
    cache->check = NULL;
    if (cache->fd >= 0 && cache->fd != cache->held)
        close(cache->fd);
    cache->fd = -1;
    free(cache->table);
    cache->table = NULL;
}

/* From an address on that lets huge pages of the file be huge pages of the process. */
static uint8_t *map_file(int fd, size_t bytes)
{
    size_t room = bytes + PACK_FILE_HUGE;
    uint8_t *base = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        return NULL;
    size_t skip = (PACK_FILE_HUGE - (uintptr_t)base % PACK_FILE_HUGE) % PACK_FILE_HUGE;
    size_t size = (bytes + PACK_FILE_PAGE - 1) / PACK_FILE_PAGE * PACK_FILE_PAGE;
    uint8_t *map = mmap(base + skip, bytes, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0);
    if (map == MAP_FAILED) {
        munmap(base, room);
        return NULL;
    }
    if (skip > 0)
        munmap(base, skip);
    size_t end = (room + PACK_FILE_PAGE - 1) / PACK_FILE_PAGE * PACK_FILE_PAGE;
    if (skip + size < end)
        munmap(map + size, end - skip - size);
    madvise(map, size, MADV_HUGEPAGE); /* what is fetched from the disk comes in huge pages */
    return map;
}

/* Who makes room asks for a moment whether a file is held; without the lock the file may go. */
static void hold_file(int fd)
{
    enum { TRIES = 50 };
    const struct timespec nap = {.tv_nsec = 1000000};
    for (int i = 0; i < TRIES && flock(fd, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK; i++)
        nanosleep(&nap, NULL);
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
    cache->held = -1;
    cache->fd = pack_file_open(cache->path, cache->key, &cache->head, &cache->table, &why);
    if (cache->fd >= 0) {
        cache->map = map_file(cache->fd, (size_t)cache->head.file_bytes);
        if (cache->map == NULL) {
            why = "it cannot be mapped";
            drop_file(cache);
        } else {
            cache->held = cache->fd;
            hold_file(cache->held);
            cache->check =
                pack_check_start(cache->map, &cache->head, cache->table, config->threads);
        }
    }
    if (why != NULL)
        log_warn("%s: %s; weights are packed anew", cache->path, why);
    return cache;
}

bool pack_cache_has_file(const pack_cache_t *cache)
{
    return cache->fd >= 0;
}

const void *pack_cache_find(pack_cache_t *cache, const char *id, size_t *bytes_out)
{
    if (cache->fd < 0)
        return NULL;
    const pack_file_entry_t *entries = (const pack_file_entry_t *)(const void *)cache->table;
    if (cache->next < cache->head.n_entries &&
        memcmp(entries[cache->next].id, id, PACK_FILE_DIGITS) == 0) {
        const pack_file_entry_t *found = &entries[cache->next++];
        *bytes_out = (size_t)found->bytes;
        if (pack_check_entry(cache->check, cache->next - 1))
            return cache->map + found->offset;
    }
    pack_cache_spoiled(cache);
    return NULL;
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

void pack_cache_note_copy(pack_cache_t *cache, const char *id, const void *bytes, size_t n)
{
    void *copy = mem_new(n + 1, 1);
    memcpy(copy, bytes, n);
    MEM_GROW(cache->copies, cache->copies_capacity, cache->n_copies + 1);
    cache->copies[cache->n_copies++] = copy;
    pack_cache_note(cache, id, copy, n);
}

static void drop_copies(pack_cache_t *cache)
{
    for (size_t i = 0; i < cache->n_copies; i++)
        free(cache->copies[i]);
    cache->n_copies = 0;
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
    drop_copies(cache);
    return NULL;
}

static bool begin_writing(pack_cache_t *cache)
{
    uint64_t bytes = pack_file_size(cache->images, cache->n);
    if (cache->n == 0 || cache->n > PACK_CACHE_WEIGHTS_MAX || bytes < cache->bytes_min)
        return false;
    if (mkdir(cache->dir, 0700) != 0 && errno != EEXIST) {
        log_warn("%s: cannot be made: %s", cache->dir, strerror(errno));
        return false;
    }
    sigset_t all, before; /* signals are for the other threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool begun = pthread_create(&cache->writer, NULL, write_file, cache) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return begun;
}

void pack_cache_finish(pack_cache_t *cache)
{
    if (cache->fd >= 0 && cache->next == cache->head.n_entries) {
        futimens(cache->fd, NULL); /* used now: the last to go */
        drop_file(cache);
        return;
    }
    drop_file(cache);
    cache->writing = begin_writing(cache);
    if (!cache->writing) {
        drop_copies(cache);
        cache->n = 0;
    }
}

void pack_cache_close(pack_cache_t *take_cache)
{
    if (take_cache == NULL)
        return;
    if (take_cache->writing)
        pthread_join(take_cache->writer, NULL);
    drop_file(take_cache);
    drop_copies(take_cache);
    free(take_cache->copies);
    if (take_cache->map != NULL)
        munmap(take_cache->map, (size_t)take_cache->head.file_bytes);
    if (take_cache->held >= 0)
        close(take_cache->held);
    free(take_cache->images);
    free(take_cache->dir);
    free(take_cache->path);
    free(take_cache->key);
    free(take_cache);
}
