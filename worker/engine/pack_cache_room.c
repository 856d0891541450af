/* How much disk the kept weights may take: see pack_file_make_room. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "common/base/memory.h"
#include "common/base/text.h"
#include "worker/engine/pack_cache_file.h"

enum {
    LEFTOVER_S = 3600, /* what nobody wrote to for so long has lost its writer */
    FREE_PERCENT = 5,  /* of the file system that stay free: others live there too */
};

typedef struct {
    char *path;
    uint64_t bytes;
    struct timespec used;
    bool stays; /* somebody writes it, or has it mapped */
} kept_t;

typedef struct {
    kept_t *files;
    size_t n, capacity;
} kept_list_t;

/* Whether a rank has it mapped: its bytes would stay on the disk until that rank ends, and the next
 * one would pack anew. A rank that comes between this look and the end has an unlinked file, which
 * serves. */
static bool is_held(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    bool held = fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    if (fd >= 0)
        close(fd);
    return held;
}

static void list_files(const char *dir, const char *except, kept_list_t *out)
{
    DIR *folder = opendir(dir);
    struct timespec now = {0};
    clock_gettime(CLOCK_REALTIME, &now);
    for (struct dirent *entry; folder != NULL && (entry = readdir(folder)) != NULL;) {
        bool is_new = text_ends_with(entry->d_name, ".new");
        if (!is_new && !text_ends_with(entry->d_name, ".weights"))
            continue;
        char *path = mem_format("%s/%s", dir, entry->d_name);
        struct stat info;
        bool there = lstat(path, &info) == 0 && S_ISREG(info.st_mode);
        if (there && is_new && now.tv_sec - info.st_mtim.tv_sec > LEFTOVER_S)
            there = unlink(path) != 0;
        if (!there || strcmp(path, except) == 0) {
            free(path);
            continue;
        }
        MEM_GROW(out->files, out->capacity, out->n + 1);
        out->files[out->n++] = (kept_t){.path = path,
                                        .bytes = (uint64_t)info.st_size,
                                        .used = info.st_mtim,
                                        .stays = is_new || is_held(path)};
    }
    if (folder != NULL)
        closedir(folder);
}

static int by_use(const void *a, const void *b)
{
    const struct timespec *left = &((const kept_t *)a)->used, *right = &((const kept_t *)b)->used;
    if (left->tv_sec != right->tv_sec)
        return left->tv_sec < right->tv_sec ? -1 : 1;
    return left->tv_nsec < right->tv_nsec ? -1 : left->tv_nsec > right->tv_nsec;
}

static bool disk_has_room(const char *dir, uint64_t bytes)
{
    struct statvfs info;
    if (statvfs(dir, &info) != 0)
        return false;
    uint64_t left = (uint64_t)info.f_bavail * info.f_frsize;
    uint64_t reserve = (uint64_t)info.f_blocks / 100 * FREE_PERCENT * info.f_frsize;
    return left > reserve && left - reserve >= bytes;
}

bool pack_file_make_room(const char *dir, const char *path, uint64_t bytes, uint64_t bytes_max)
{
    kept_list_t list = {0};
    uint64_t total = 0, stay = 0;
    list_files(dir, path, &list);
    if (list.n > 0)
        qsort(list.files, list.n, sizeof *list.files, by_use);
    for (size_t i = 0; i < list.n; i++) {
        total += list.files[i].bytes;
        stay += list.files[i].stays ? list.files[i].bytes : 0;
    }
    bool can = bytes <= bytes_max && stay <= bytes_max - bytes;
    for (size_t i = 0; can && i < list.n && total > bytes_max - bytes; i++)
        if (!list.files[i].stays && unlink(list.files[i].path) == 0)
            total -= list.files[i].bytes;
    can = can && total <= bytes_max - bytes && disk_has_room(dir, bytes);
    for (size_t i = 0; i < list.n; i++)
        free(list.files[i].path);
    free(list.files);
    return can;
}
