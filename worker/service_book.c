/* A hash table of packed Admits, chained, with a list in order of last use. */
#include "worker/service_book.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"

#define BUCKETS 4096u

typedef struct entry entry_t;
struct entry {
    entry_t *chain;
    entry_t *older, *newer;
    uint64_t forget_ms; /* 0 while the sequence goes on */
    uint64_t used_ms;
    uint32_t choice, stream; /* stream: whose next output carries it; 0 none */
    size_t bytes;
    char session[40];
    uint8_t packed[];
};

struct service_book {
    entry_t *buckets[BUCKETS];
    entry_t *oldest, *newest;
    size_t n, bytes;
};

service_book_t *service_book_new(void)
{
    return MEM_NEW(service_book_t);
}

static uint32_t bucket_of(const char *session, uint32_t choice)
{
    uint32_t hash = 2166136261u ^ choice;
    for (const char *c = session; *c; c++)
        hash = (hash ^ (uint8_t)*c) * 16777619u;
    return hash % BUCKETS;
}

static entry_t *find(const service_book_t *book, const char *session, uint32_t choice)
{
    entry_t *entry = book->buckets[bucket_of(session, choice)];
    while (entry && (entry->choice != choice || strcmp(entry->session, session) != 0))
        entry = entry->chain;
    return entry;
}

static void unlink_age(service_book_t *book, entry_t *entry)
{
    *(entry->older ? &entry->older->newer : &book->oldest) = entry->newer;
    *(entry->newer ? &entry->newer->older : &book->newest) = entry->older;
}

static void link_newest(service_book_t *book, entry_t *entry)
{
    entry->older = book->newest;
    entry->newer = NULL;
    *(book->newest ? &book->newest->newer : &book->oldest) = entry;
    book->newest = entry;
}

static void drop(service_book_t *book, entry_t *entry)
{
    entry_t **at = &book->buckets[bucket_of(entry->session, entry->choice)];
    while (*at != entry)
        at = &(*at)->chain;
    *at = entry->chain;
    unlink_age(book, entry);
    book->n--;
    book->bytes -= entry->bytes;
    free(entry);
}

void service_book_clear(service_book_t *book)
{
    while (book->oldest)
        drop(book, book->oldest);
}

void service_book_free(service_book_t *take_book)
{
    if (!take_book)
        return;
    service_book_clear(take_book);
    free(take_book);
}

/* Looks at a few of the oldest only, so that a put stays O(1). */
static void make_room(service_book_t *book, uint64_t now_ms)
{
    for (int i = 0; i < 4 && book->oldest; i++) {
        const entry_t *entry = book->oldest;
        bool over = book->n >= SERVICE_BOOK_ENTRIES_MAX || book->bytes > SERVICE_BOOK_BYTES_MAX;
        bool ended = entry->forget_ms != 0 && entry->forget_ms <= now_ms;
        /* The end of a sequence that nobody was attached to is never heard of here. */
        bool idle = now_ms - entry->used_ms >= SERVICE_BOOK_IDLE_MS;
        if (!over && !ended && !idle)
            return;
        drop(book, book->oldest);
    }
}

void service_book_put(service_book_t *book, Shoal__Worker__V1__Admit *admit, uint64_t now_ms)
{
    make_room(book, now_ms);
    if (strlen(admit->session) >= sizeof((entry_t *)0)->session ||
        find(book, admit->session, admit->choice))
        return;
    size_t n_produced = admit->n_produced;
    admit->n_produced = 0;
    size_t bytes = shoal__worker__v1__admit__get_packed_size(admit);
    entry_t *entry = mem_new(1, sizeof *entry + bytes);
    shoal__worker__v1__admit__pack(admit, entry->packed);
    admit->n_produced = n_produced;
    entry->bytes = bytes;
    entry->used_ms = now_ms;
    entry->choice = admit->choice;
    memcpy(entry->session, admit->session, strlen(admit->session) + 1);
    entry_t **bucket = &book->buckets[bucket_of(entry->session, entry->choice)];
    entry->chain = *bucket;
    *bucket = entry;
    link_newest(book, entry);
    book->n++;
    book->bytes += bytes;
}

void service_book_attach(service_book_t *book, const char *session, uint32_t choice,
                         uint32_t stream)
{
    entry_t *entry = find(book, session, choice);
    if (entry)
        entry->stream = stream;
}

Shoal__Worker__V1__Admit *service_book_output(service_book_t *book, const char *session,
                                              uint32_t choice, uint32_t stream, bool ended,
                                              uint64_t now_ms)
{
    entry_t *entry = find(book, session, choice);
    if (!entry)
        return NULL;
    unlink_age(book, entry);
    link_newest(book, entry);
    entry->used_ms = now_ms;
    if (ended)
        entry->forget_ms = now_ms + SERVICE_BOOK_KEEP_MS;
    if (entry->stream != stream)
        return NULL;
    entry->stream = 0;
    return shoal__worker__v1__admit__unpack(NULL, entry->bytes, entry->packed);
}
