/* Two lists and the number of the one that counts: the other one is written, then the number is
 * turned. See step_page.h. */
#include "worker/step_page.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define STEP_PAGE_MAGIC 0x50455453u

typedef struct {
    uint32_t n;
    char sessions[CONTROL_SESSIONS_MAX][CONTROL_SESSION_BYTES];
} list_t;

struct step_page {
    uint32_t magic;
    _Atomic uint32_t turn; /* lists[turn & 1] counts */
    list_t lists[2];
};

_Static_assert(ATOMIC_INT_LOCK_FREE == 2, "a lock would die with its holder");

static status_t map(int fd, step_page_t **own_out)
{
    void *memory =
        mmap(NULL, sizeof **own_out, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        return fail(STATUS_EXHAUSTED, "cannot map the page of a leader's sessions: %m");
    *own_out = memory;
    return STATUS_OK;
}

status_t step_page_create(step_page_t **own_out, int *own_fd_out)
{
    const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    int fd = memfd_create("shoal-step", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return fail(STATUS_EXHAUSTED, "cannot make the page of a leader's sessions: %m");
    step_page_t *page = NULL;
    status_t status = STATUS_OK;
    /* New memory is all zero: list 0 counts and is empty. */
    if (ftruncate(fd, sizeof *page) != 0 || fcntl(fd, F_ADD_SEALS, seals) != 0)
        status = fail(STATUS_EXHAUSTED, "cannot size the page of a leader's sessions: %m");
    if (status == STATUS_OK)
        status = map(fd, &page);
    if (status != STATUS_OK) {
        close(fd);
        return status;
    }
    page->magic = STEP_PAGE_MAGIC;
    *own_out = page;
    *own_fd_out = fd;
    return STATUS_OK;
}

status_t step_page_map(int fd, step_page_t **own_out)
{
    struct stat about;
    step_page_t *page;
    if (fstat(fd, &about) != 0 || about.st_size != (off_t)sizeof *page)
        return fail(STATUS_INVALID, "the page of a leader's sessions has another size");
    TRY(map(fd, &page));
    if (page->magic != STEP_PAGE_MAGIC) {
        step_page_unmap(page);
        return fail(STATUS_INVALID, "the page of a leader's sessions is no such page");
    }
    *own_out = page;
    return STATUS_OK;
}

void step_page_unmap(step_page_t *take_page)
{
    if (take_page)
        munmap(take_page, sizeof *take_page);
}

void step_page_write(step_page_t *page, uint32_t n, const char (*sessions)[CONTROL_SESSION_BYTES])
{
    uint32_t turn = atomic_load_explicit(&page->turn, memory_order_relaxed) + 1;
    list_t *list = &page->lists[turn & 1];
    list->n = n < CONTROL_SESSIONS_MAX ? n : CONTROL_SESSIONS_MAX;
    if (list->n > 0)
        memcpy(list->sessions, sessions, list->n * sizeof list->sessions[0]);
    atomic_store_explicit(&page->turn, turn, memory_order_release);
}

/* Printable ASCII with an end, as whoever publishes it needs it. */
static bool is_name(const char name[CONTROL_SESSION_BYTES])
{
    size_t n = strnlen(name, CONTROL_SESSION_BYTES);
    for (size_t i = 0; i < n; i++)
        if (name[i] <= ' ' || name[i] > '~')
            return false;
    return n > 0 && n < CONTROL_SESSION_BYTES;
}

uint32_t step_page_read(const step_page_t *page,
                        char sessions_out[CONTROL_SESSIONS_MAX][CONTROL_SESSION_BYTES])
{
    uint32_t turn = atomic_load_explicit(&page->turn, memory_order_acquire);
    const list_t *list = &page->lists[turn & 1];
    uint32_t n = list->n < CONTROL_SESSIONS_MAX ? list->n : CONTROL_SESSIONS_MAX, n_good = 0;
    for (uint32_t i = 0; i < n; i++) {
        char *name = sessions_out[n_good];
        memcpy(name, list->sessions[i], CONTROL_SESSION_BYTES);
        n_good += is_name(name) ? 1 : 0;
    }
    return n_good;
}
