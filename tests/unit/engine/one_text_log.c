/* See one_text_log.h. A line is `key hash rows name`; it is written at once, after the case was
 * compared, so a run that is killed leaves no half line and no case that was not shown. */
#include "one_text_log.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "eval_run.h"

static uint64_t hash_of_file(const char *path)
{
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &info), 0);
    void *bytes = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    assert_true(bytes != MAP_FAILED);
    close(fd);
    uint64_t hash = XXH3_64bits(bytes, (size_t)info.st_size);
    munmap(bytes, (size_t)info.st_size);
    return hash;
}

/* The first bytes that a run sees, its own or a line's, are what all others must be. */
static void compare(one_text_log_t *log, const char *name, uint64_t hash, uint64_t rows)
{
    if (log->hash == 0)
        log->hash = hash;
    if (log->rows == 0)
        log->rows = rows;
    if (log->hash != hash || (rows != 0 && log->rows != rows))
        fail_msg("other bytes with %s: %016" PRIx64 " %016" PRIx64 " instead of %016" PRIx64
                 " %016" PRIx64,
                 name, hash, rows, log->hash, log->rows);
}

void one_text_log_open(one_text_log_t *log, const char *model, const json_t *ids, uint32_t greedy)
{
    char *prompts = json_dumps(ids, JSON_COMPACT), line[160];
    const char *slash = strrchr(model, '/'), *name = slash ? slash + 1 : model;
    *log = (one_text_log_t){.path = getenv("SHOAL_ONE_TEXT_LOG")};
    if (log->path) {
        log->key = XXH3_64bits_withSeed(prompts, strlen(prompts), greedy);
        log->key = XXH3_64bits_withSeed(name, strlen(name), log->key);
        log->key ^= hash_of_file(eval_program());
    }
    free(prompts);
    FILE *file = log->path ? fopen(log->path, "r") : NULL;
    while (file && fgets(line, sizeof line, file)) {
        uint64_t key, hash, rows;
        int at = 0;
        if (sscanf(line, "%" SCNx64 " %" SCNx64 " %" SCNx64 " %n", &key, &hash, &rows, &at) < 3 ||
            at == 0 || key != log->key || log->n_shown == ONE_TEXT_CASES_MAX)
            continue;
        line[strcspn(line, "\n")] = 0;
        compare(log, line + at, hash, rows);
        snprintf(log->shown[log->n_shown++], sizeof log->shown[0], "%s", line + at);
    }
    if (file)
        fclose(file);
}

bool one_text_log_has(const one_text_log_t *log, const char *name)
{
    for (uint32_t i = 0; i < log->n_shown; i++)
        if (strcmp(log->shown[i], name) == 0)
            return true;
    return false;
}

void one_text_log_add(one_text_log_t *log, const char *name, uint64_t hash, uint64_t rows)
{
    char line[160];
    compare(log, name, hash, rows);
    if (!log->path)
        return;
    int n = snprintf(line, sizeof line, "%016" PRIx64 " %016" PRIx64 " %016" PRIx64 " %s\n",
                     log->key, hash, rows, name);
    int fd = open(log->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, line, (size_t)n), n);
    close(fd);
}
