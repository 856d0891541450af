/* The packed weights of a rank, kept on disk so that the next start of the same rank maps them
 * instead of making them again: they stay in the system's file cache, which all ranks that hold the
 * same ones share, and are not copied. One file a rank and form, named after its key: everything that
 * decides what the bytes are. A file that is damaged, cut short, of another key or of another
 * layout is not believed: it costs the time of packing, never the answer, and a new one takes
 * its place.
 *
 * Written whole and put in place by renaming; several ranks may write the same file at once, and
 * the last one stays. All files of a directory together have a size limit, under which those
 * that were not used for the longest time go first, and those that a rank has mapped not at all.
 *
 * What is taken was checked against its checksums when it was taken. What the system has to read
 * again later, because it needed the memory, is not checked once more, as with a model's file.
 *
 * Used by one thread, which others help. Never fails: what is wrong is logged. */
#ifndef SHOAL_WORKER_ENGINE_PACK_CACHE_H
#define SHOAL_WORKER_ENGINE_PACK_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    PACK_CACHE_KEY_MAX = 2048,
    PACK_CACHE_ID_SIZE = 33, /* 32 hexadecimal digits and the NUL */
    PACK_CACHE_WEIGHTS_MAX = 1 << 20,
};

typedef struct {
    const char *dir;    /* made when it is not there; its parent is */
    const char *key;    /* text, shorter than PACK_CACHE_KEY_MAX */
    uint64_t bytes_max; /* of all files of the directory */
    uint64_t bytes_min; /* what is smaller is packed so fast that it is not kept */
    uint32_t threads;   /* that check the file, the caller's among them */
} pack_cache_config_t;

typedef struct pack_cache pack_cache_t;

/* Opens the file of that key, if there is a good one, and begins to check it. */
pack_cache_t *pack_cache_open(const pack_cache_config_t *config);

/* Whether weights may come from a file; false once one of them could not. */
bool pack_cache_has_file(const pack_cache_t *cache);

/* The image of the weight `id` (a digest of what it is made from), as it was written; NULL when
 * there is none. It is checked when this returns. It starts on a page and is borrowed
 * until pack_cache_close. After the first miss there are no more: such a file is not what this
 * program wrote. */
const void *pack_cache_find(pack_cache_t *cache, const char *id, size_t *bytes_out);
/* The image found last could not be used: the file is given up and will be written anew. */
void pack_cache_spoiled(pack_cache_t *cache);

/* A weight of this rank, in the order in which they are looked for. `image` is borrowed until
 * pack_cache_close. */
void pack_cache_note(pack_cache_t *cache, const char *id, const void *image, size_t bytes);
/* The same of bytes that are not borrowed but copied, until they are written. */
void pack_cache_note_copy(pack_cache_t *cache, const char *id, const void *bytes, size_t n);
/* All were noted and the model is loaded. Unless each of them came from the file, a thread of its
 * own now writes them. */
void pack_cache_finish(pack_cache_t *cache);
/* Waits for the writing; images that were found are gone. Without pack_cache_finish nothing is
 * written. NULL is fine. */
void pack_cache_close(pack_cache_t *take_cache);

#endif
