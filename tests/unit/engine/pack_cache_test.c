/* Packed weights on disk: what was kept comes back to the byte, and a file that is damaged, cut
 * short, forged or of another key is not believed and is replaced. */
#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/digest.h"
#include "common/base/log.h"
#include "common/base/memory.h"
#include "worker/engine/pack_cache.h"
#include "worker/engine/pack_cache_file.h"

enum { N = 3 };
static const size_t sizes[N] = {5000, PACK_FILE_HUGE + PACK_FILE_PIECE + 77, 4096};
static const char *const ids[N] = {"00000000000000000000000000000001",
                                   "00000000000000000000000000000002",
                                   "00000000000000000000000000000003"};
#define KEY "layout test 1\nmodel sha256:00\nslice 0 of 1\n"
#define NO_LIMIT ((uint64_t)1 << 40)

static char *room, *dir;
static uint8_t *images[N];
static uint32_t n_starts;

static int setup(void **state)
{
    (void)state;
    char template[] = "/tmp/shoal-pack-cache-XXXXXX";
    assert_non_null(mkdtemp(template));
    room = mem_strdup(template);
    dir = mem_format("%s/packed", room);
    for (uint32_t i = 0; i < N; i++) {
        images[i] = mem_new(sizes[i], 1);
        for (size_t b = 0; b < sizes[i]; b++)
            images[i][b] = (uint8_t)((b * 2654435761u >> 13) + i);
    }
    return 0;
}

/* All files of the directory. */
static uint32_t count_files(bool remove_them)
{
    uint32_t n = 0;
    DIR *folder = opendir(dir);
    for (struct dirent *entry; folder != NULL && (entry = readdir(folder)) != NULL;) {
        if (entry->d_name[0] == '.')
            continue;
        char *path = mem_format("%s/%s", dir, entry->d_name);
        n++;
        if (remove_them)
            assert_int_equal(unlink(path), 0);
        free(path);
    }
    if (folder != NULL)
        closedir(folder);
    return n;
}

static int teardown(void **state)
{
    (void)state;
    count_files(true);
    rmdir(dir);
    rmdir(room);
    for (uint32_t i = 0; i < N; i++)
        free(images[i]);
    free(dir);
    free(room);
    return 0;
}

/* One start of a rank: how many weights came from the file. `key` is the rank's. */
static uint32_t start(const char *key, uint64_t bytes_max)
{
    /* One after the other: nobody who helps to check, more helpers than there is to do. */
    const pack_cache_config_t config = {
        .dir = dir, .key = key, .bytes_max = bytes_max, .threads = n_starts++ % 5};
    pack_cache_t *cache = pack_cache_open(&config);
    uint32_t n_kept = 0;
    const void *found[N];
    for (uint32_t i = 0; i < N; i++) {
        size_t bytes = 0;
        found[i] = pack_cache_find(cache, ids[i], &bytes);
        if (found[i] != NULL && bytes != sizes[i]) {
            pack_cache_spoiled(cache);
            found[i] = NULL;
        }
        n_kept += found[i] != NULL;
        pack_cache_note(cache, ids[i], found[i] ? found[i] : images[i], sizes[i]);
    }
    pack_cache_finish(cache);
    /* Never other bytes, and borrowed until the end, whatever became of the file. */
    for (uint32_t i = 0; i < N; i++)
        if (found[i] != NULL) {
            assert_int_equal((uintptr_t)found[i] % PACK_FILE_PAGE, 0);
            assert_memory_equal(found[i], images[i], sizes[i]);
        }
    pack_cache_close(cache);
    return n_kept;
}

/* The only file of the directory. */
static char *only_file(void)
{
    char *path = NULL;
    DIR *folder = opendir(dir);
    assert_non_null(folder);
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;)
        if (entry->d_name[0] != '.') {
            assert_null(path);
            path = mem_format("%s/%s", dir, entry->d_name);
        }
    closedir(folder);
    assert_non_null(path);
    return path;
}

static uint8_t *read_file(const char *path, size_t *n_out)
{
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    *n_out = (size_t)info.st_size;
    uint8_t *bytes = mem_new(*n_out + 1, 1);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fread(bytes, 1, *n_out, file), *n_out);
    fclose(file);
    return bytes;
}

static void write_file(const char *path, const void *bytes, size_t n)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
}

static void set_age(const char *path, long seconds)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    now.tv_sec -= seconds;
    const struct timespec times[2] = {now, now};
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

/* ---- tests ---- */

static void test_the_second_start_reads_what_the_first_packed(void **state)
{
    (void)state;
    assert_int_equal(start(KEY, NO_LIMIT), 0);
    char *path = only_file();
    struct stat first, second;
    set_age(path, 1000);
    assert_int_equal(stat(path, &first), 0);
    assert_int_equal(first.st_mode & 0777, 0600);
    assert_int_equal(start(KEY, NO_LIMIT), N);
    assert_int_equal(stat(path, &second), 0);
    assert_int_equal(first.st_ino, second.st_ino);
    assert_true(second.st_mtim.tv_sec > first.st_mtim.tv_sec); /* used now */
    free(path);
}

static void test_another_key_finds_nothing_and_gets_a_file_of_its_own(void **state)
{
    (void)state;
    assert_int_equal(start(KEY, NO_LIMIT), 0);
    assert_int_equal(start(KEY "layout 2\n", NO_LIMIT), 0);
    assert_int_equal(count_files(false), 2);
    assert_int_equal(start(KEY, NO_LIMIT), N);
    assert_int_equal(start(KEY "layout 2\n", NO_LIMIT), N);
}

/* The file of one key under the name of another: names are digests, contents are what counts. */
static void test_a_file_of_another_key_under_this_name_is_replaced(void **state)
{
    (void)state;
    assert_int_equal(start("other\n", NO_LIMIT), 0);
    char *other = only_file();
    size_t n;
    uint8_t *bytes = read_file(other, &n);
    assert_int_equal(unlink(other), 0);
    assert_int_equal(start(KEY, NO_LIMIT), 0);
    char *path = only_file();
    write_file(path, bytes, n);
    assert_int_equal(start(KEY, NO_LIMIT), 0);
    assert_int_equal(start(KEY, NO_LIMIT), N);
    free(bytes);
    free(other);
    free(path);
}

/* `start` compares every byte that it takes, so a damaged byte that is taken fails there. */
static void check_damaged(const char *path, const uint8_t *bytes, size_t n, uint32_t kept_max)
{
    write_file(path, bytes, n);
    assert_true(start(KEY, NO_LIMIT) <= kept_max);
    assert_int_equal(start(KEY, NO_LIMIT), N); /* it was replaced */
}

static void test_every_damaged_byte_of_head_and_table_is_seen_and_repaired(void **state)
{
    (void)state;
    assert_int_equal(start(KEY, NO_LIMIT), 0);
    char *path = only_file();
    size_t n;
    uint8_t *bytes = read_file(path, &n);
    const pack_file_head_t *head = (const pack_file_head_t *)(const void *)bytes;
    uint64_t table = head->table_offset;
    assert_int_equal(n, head->file_bytes);
    assert_int_equal(head->n_entries, N);
    for (size_t at = 0; at < n; at++) {
        bool is_key = at >= offsetof(pack_file_head_t, key) + sizeof KEY &&
                      at < offsetof(pack_file_head_t, head_digest) && at % 97 != 0;
        bool is_sum = at >= table + N * sizeof(pack_file_entry_t) && at % 37 != 0;
        if ((at >= sizeof *head && at < table) || is_key || is_sum)
            continue;
        bytes[at] ^= (uint8_t)(1u << at % 8);
        check_damaged(path, bytes, n, 0);
        bytes[at] ^= (uint8_t)(1u << at % 8);
    }
    free(bytes);
    free(path);
}

static void test_a_damaged_image_is_packed_anew_with_all_behind_it(void **state)
{
    (void)state;
    assert_int_equal(start(KEY, NO_LIMIT), 0);
    char *path = only_file();
    size_t n, at = PACK_FILE_PAGE;
    uint8_t *bytes = read_file(path, &n);
    for (uint32_t i = 0; i < N; i++) {
        const size_t places[] = {0, sizes[i] / 2, sizes[i] - 1};
        for (size_t p = 0; p < 3; p++) {
            bytes[at + places[p]] ^= 0x10;
            check_damaged(path, bytes, n, i);
            bytes[at + places[p]] ^= 0x10;
        }
        at += (sizes[i] + PACK_FILE_PAGE - 1) / PACK_FILE_PAGE * PACK_FILE_PAGE;
    }
    free(bytes);
    free(path);
}

static void test_a_file_cut_short_or_grown_is_replaced(void **state)
{
    (void)state;
    assert_int_equal(start(KEY, NO_LIMIT), 0);
    char *path = only_file();
    size_t n;
    uint8_t *bytes = read_file(path, &n);
    const size_t lengths[] = {0, 1, 8, sizeof(pack_file_head_t) - 1, sizeof(pack_file_head_t),
                              PACK_FILE_PAGE, PACK_FILE_PAGE + 1, n / 2, n - 33, n - 1};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
        check_damaged(path, bytes, lengths[i], 0);
    uint8_t *longer = mem_new(n + 8, 1);
    memcpy(longer, bytes, n);
    check_damaged(path, longer, n + 8, 0);
    free(longer);
    free(bytes);
    free(path);
}

/* Files whose digests are right but whose numbers are not: only a program could write them. */
static void test_numbers_that_cannot_be_are_refused_with_right_digests(void **state)
{
    (void)state;
    assert_int_equal(start(KEY, NO_LIMIT), 0);
    char *path = only_file();
    size_t n;
    uint8_t *bytes = read_file(path, &n);
    for (uint32_t kind = 0; kind < 8; kind++) {
        uint8_t *forged = mem_new(n, 1);
        memcpy(forged, bytes, n);
        pack_file_head_t *head = (pack_file_head_t *)(void *)forged;
        size_t table_bytes = n - head->table_offset;
        uint8_t *table = forged + head->table_offset;
        pack_file_entry_t *entry = (pack_file_entry_t *)(void *)table;
        switch (kind) {
        case 0: entry[0].offset = UINT64_MAX - 100; break;
        case 1: entry[1].bytes = UINT64_MAX; break;
        case 2: entry[2].piece_first = UINT64_MAX / 32; break;
        case 3: entry[2].offset += PACK_FILE_PAGE; break;
        case 4: entry[0].bytes = head->table_offset; break;
        case 5: head->n_pieces = UINT64_MAX / 16; break;
        case 6: head->n_entries = UINT64_MAX / 28; break;
        default: head->table_offset = UINT64_MAX; break;
        }
        pack_file_digest(table, table_bytes, head->table_digest);
        pack_file_digest(head, offsetof(pack_file_head_t, head_digest), head->head_digest);
        check_damaged(path, forged, n, 0);
        free(forged);
    }
    free(bytes);
    free(path);
}

static void test_a_weight_that_the_file_lacks_makes_a_new_file(void **state)
{
    (void)state;
    const pack_file_image_t two[2] = {{.image = images[0], .bytes = sizes[0]},
                                      {.image = images[1], .bytes = sizes[1]}};
    pack_file_image_t some[2] = {two[0], two[1]};
    assert_int_equal(start(KEY, NO_LIMIT), 0);
    char *path = only_file();
    memcpy(some[0].id, ids[0], PACK_CACHE_ID_SIZE);
    memcpy(some[1].id, ids[1], PACK_CACHE_ID_SIZE);
    assert_true(pack_file_write(path, KEY, some, 2)); /* one too few */
    assert_int_equal(start(KEY, NO_LIMIT), 2);
    assert_int_equal(start(KEY, NO_LIMIT), N);
    pack_file_image_t more[N + 1] = {{.bytes = 0}};
    for (uint32_t i = 0; i < N + 1; i++) {
        more[i] = (pack_file_image_t){.image = images[i % N], .bytes = sizes[i % N]};
        memcpy(more[i].id, ids[i % N], PACK_CACHE_ID_SIZE);
    }
    struct stat before, after;
    assert_true(pack_file_write(path, KEY, more, N + 1)); /* one too many */
    assert_int_equal(stat(path, &before), 0);
    assert_int_equal(start(KEY, NO_LIMIT), N);
    assert_int_equal(stat(path, &after), 0);
    assert_true(after.st_size < before.st_size);
    free(path);
}

static void test_another_weight_of_the_same_size_is_not_taken(void **state)
{
    (void)state;
    uint8_t *other = mem_new(sizes[0], 1); /* all zeros, with digests that are right */
    pack_file_image_t one = {.image = other, .bytes = sizes[0]};
    memset(one.id, 'f', PACK_FILE_DIGITS);
    assert_int_equal(start(KEY, NO_LIMIT), 0);
    char *path = only_file();
    assert_true(pack_file_write(path, KEY, &one, 1));
    assert_int_equal(start(KEY, NO_LIMIT), 0);
    assert_int_equal(start(KEY, NO_LIMIT), N);
    free(path);
    free(other);
}

static void test_the_limit_holds_and_the_oldest_goes_first(void **state)
{
    (void)state;
    assert_int_equal(start("a\n", NO_LIMIT), 0);
    char *a = only_file();
    struct stat info;
    assert_int_equal(stat(a, &info), 0);
    uint64_t one = (uint64_t)info.st_size;
    set_age(a, 300);
    assert_int_equal(start("b\n", 2 * one), 0);
    assert_int_equal(count_files(false), 2);
    char hex[DIGEST_HEX_SIZE];
    digest_of_bytes("b\n", 2, hex);
    char *b = mem_format("%s/%.32s.weights", dir, hex);
    set_age(b, 100);
    free(b);
    assert_int_equal(start("a\n", 2 * one), N); /* which makes b the oldest */
    assert_int_equal(start("c\n", 2 * one), 0);
    assert_int_equal(count_files(false), 2);
    assert_int_equal(start("a\n", 2 * one), N);
    assert_int_equal(start("c\n", 2 * one), N);
    assert_int_equal(start("d\n", one - 1), 0); /* more than is allowed at all: nothing changes */
    assert_int_equal(count_files(false), 2);
    assert_int_equal(start("a\n", one), N);
    free(a);
}

static void test_what_a_dead_writer_left_is_removed_after_a_while(void **state)
{
    (void)state;
    assert_int_equal(start(KEY, NO_LIMIT), 0);
    char *old = mem_format("%s/x.weights.aaaaaa.new", dir);
    char *young = mem_format("%s/x.weights.bbbbbb.new", dir);
    char *foreign = mem_format("%s/notes.txt", dir);
    write_file(old, "x", 1);
    write_file(young, "x", 1);
    write_file(foreign, "x", 1);
    set_age(old, 100000);
    set_age(foreign, 100000);
    assert_int_equal(start("b\n", NO_LIMIT), 0);
    assert_int_not_equal(access(old, F_OK), 0);
    assert_int_equal(access(young, F_OK), 0);
    assert_int_equal(access(foreign, F_OK), 0);
    free(old);
    free(young);
    free(foreign);
}

static void test_a_link_or_folder_in_its_place_is_not_followed(void **state)
{
    (void)state;
    assert_int_equal(start(KEY, NO_LIMIT), 0);
    char *path = only_file(), *aside = mem_format("%s/aside", room);
    assert_int_equal(rename(path, aside), 0);
    assert_int_equal(symlink(aside, path), 0);
    assert_int_equal(start(KEY, NO_LIMIT), 0);
    struct stat info;
    assert_int_equal(lstat(path, &info), 0);
    assert_true(S_ISREG(info.st_mode));
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(start(KEY, NO_LIMIT), 0); /* and cannot be replaced: that costs time alone */
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(count_files(false), 0); /* nothing half made stays */
    assert_int_equal(unlink(aside), 0);
    free(path);
    free(aside);
}

static void test_small_ones_are_not_kept(void **state)
{
    (void)state;
    const pack_cache_config_t config = {
        .dir = dir, .key = KEY, .bytes_max = NO_LIMIT, .bytes_min = 1 << 20};
    pack_cache_t *cache = pack_cache_open(&config);
    pack_cache_note(cache, ids[0], images[0], sizes[0]);
    pack_cache_finish(cache);
    pack_cache_close(cache);
    assert_int_equal(count_files(false), 0);
}

static void test_a_load_that_failed_keeps_nothing(void **state)
{
    (void)state;
    const pack_cache_config_t config = {.dir = dir, .key = KEY, .bytes_max = NO_LIMIT};
    pack_cache_t *cache = pack_cache_open(&config);
    pack_cache_note(cache, ids[0], images[0], sizes[0]);
    pack_cache_close(cache);
    assert_int_equal(count_files(false), 0);
}

static void test_two_ranks_may_write_one_file_at_once(void **state)
{
    (void)state;
    pid_t children[4];
    assert_int_equal(start(KEY, NO_LIMIT), 0);
    char *path = only_file();
    for (uint32_t i = 0; i < 4; i++) {
        children[i] = fork();
        assert_true(children[i] >= 0);
        if (children[i] == 0) {
            for (uint32_t turn = 0; turn < 8; turn++) {
                (void)start(KEY, NO_LIMIT);
                if (turn % 2 == 0)
                    unlink(path);
            }
            _exit(0);
        }
    }
    for (uint32_t i = 0; i < 4; i++) {
        int status = -1;
        assert_int_equal(waitpid(children[i], &status, 0), children[i]);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    free(path);
    (void)start(KEY, NO_LIMIT);
    assert_int_equal(start(KEY, NO_LIMIT), N);
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, teardown)

int main(void)
{
    setenv("SHOAL_LOG", "error", 1);
    log_start("pack_cache_test");
    const struct CMUnitTest tests[] = {
        TEST(the_second_start_reads_what_the_first_packed),
        TEST(another_key_finds_nothing_and_gets_a_file_of_its_own),
        TEST(a_file_of_another_key_under_this_name_is_replaced),
        TEST(every_damaged_byte_of_head_and_table_is_seen_and_repaired),
        TEST(a_damaged_image_is_packed_anew_with_all_behind_it),
        TEST(a_file_cut_short_or_grown_is_replaced),
        TEST(numbers_that_cannot_be_are_refused_with_right_digests),
        TEST(a_weight_that_the_file_lacks_makes_a_new_file),
        TEST(another_weight_of_the_same_size_is_not_taken),
        TEST(the_limit_holds_and_the_oldest_goes_first),
        TEST(what_a_dead_writer_left_is_removed_after_a_while),
        TEST(a_link_or_folder_in_its_place_is_not_followed),
        TEST(small_ones_are_not_kept),
        TEST(a_load_that_failed_keeps_nothing),
        TEST(two_ranks_may_write_one_file_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
