/* Kept weights that another process has mapped are not removed to make room. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/digest.h"
#include "common/base/memory.h"
#include "worker/engine/pack_cache.h"

enum { BYTES = 3 << 20 };
static const char id[] = "00000000000000000000000000000001";
static char *dir;
static uint8_t *image;

static char *path_of(const char *key)
{
    char hex[DIGEST_HEX_SIZE];
    digest_of_bytes(key, strlen(key), hex);
    return mem_format("%s/%.32s.weights", dir, hex);
}

/* 0 without a file. */
static uint64_t size_of(const char *key)
{
    char *path = path_of(key);
    struct stat info;
    uint64_t bytes = stat(path, &info) == 0 ? (uint64_t)info.st_size : 0;
    free(path);
    return bytes;
}

/* What a rank does: NULL found, the image is packed and kept. */
static pack_cache_t *start(const char *key, uint64_t bytes_max, const void **found_out)
{
    pack_cache_config_t config = {.dir = dir, .key = key, .bytes_max = bytes_max, .bytes_min = 1};
    pack_cache_t *cache = pack_cache_open(&config);
    size_t bytes;
    *found_out = pack_cache_find(cache, id, &bytes);
    pack_cache_note(cache, id, *found_out ? *found_out : image, BYTES);
    pack_cache_finish(cache);
    return cache;
}

static bool starts_with_file(const char *key, uint64_t bytes_max)
{
    const void *found;
    pack_cache_close(start(key, bytes_max, &found));
    return found != NULL;
}

/* A rank of key "a" that runs until its input ends, as it does when this process dies. */
static pid_t fork_rank(int *end_out)
{
    int ready[2], end[2];
    char byte = 0;
    assert_int_equal(pipe(ready) | pipe(end), 0);
    pid_t rank = fork();
    assert_true(rank >= 0);
    if (rank == 0) {
        const void *found;
        close(end[1]);
        pack_cache_t *cache = start("a\n", UINT64_MAX / 2, &found);
        bool good = found != NULL && write(ready[1], &byte, 1) == 1 && read(end[0], &byte, 1) == 0;
        good = good && memcmp(found, image, BYTES) == 0;
        pack_cache_close(cache);
        _exit(good ? 0 : 1);
    }
    close(ready[1]);
    close(end[0]);
    assert_int_equal(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    *end_out = end[1];
    return rank;
}

static void test_what_another_process_has_mapped_stays_until_it_ends(void **state)
{
    (void)state;
    assert_false(starts_with_file("a\n", UINT64_MAX / 2));
    uint64_t one = size_of("a\n");
    assert_in_range(one, BYTES, 2 * BYTES);
    int end, status = -1;
    pid_t rank = fork_rank(&end);
    /* There is room for two, and "a" was there first. */
    assert_false(starts_with_file("b\n", 2 * one));
    assert_false(starts_with_file("c\n", 2 * one));
    assert_true(size_of("a\n") == one && size_of("b\n") == 0 && size_of("c\n") == one);
    /* It is not kept, and nothing goes that would not make room enough. */
    assert_false(starts_with_file("d\n", one));
    assert_true(size_of("a\n") == one && size_of("c\n") == one && size_of("d\n") == 0);
    close(end);
    assert_int_equal(waitpid(rank, &status, 0), rank);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_false(starts_with_file("d\n", one));
    assert_true(size_of("a\n") == 0 && size_of("c\n") == 0 && size_of("d\n") == one);
    assert_true(starts_with_file("d\n", one));
}

static int setup(void **state)
{
    (void)state;
    char template[] = "/tmp/shoal-pack-held-XXXXXX";
    assert_non_null(mkdtemp(template));
    dir = mem_strdup(template);
    image = mem_new(BYTES, 1);
    for (size_t b = 0; b < BYTES; b++)
        image[b] = (uint8_t)(b * 2654435761u >> 13);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    for (const char *key = "a\0b\0c\0d\0"; *key; key += 2) {
        char *name = mem_format("%s\n", key), *path = path_of(name);
        unlink(path);
        free(path);
        free(name);
    }
    rmdir(dir);
    free(dir);
    free(image);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_what_another_process_has_mapped_stays_until_it_ends,
                                        setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
