/* Digests: of bytes and files, of a model with its cache, and the text identity. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/digest.h"
#include "common/base/memory.h"
#include "common/model/model.h"

static char dir[64];
static char *model_file;
static char *cache_dir;

static void write_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "we");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static int make_folder(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/shoal-identity-XXXXXX");
    assert_non_null(mkdtemp(dir));
    model_file = mem_format("%s/m.gguf", dir);
    cache_dir = mem_format("%s/cache", dir);
    assert_int_equal(mkdir(cache_dir, 0700), 0);
    write_file(model_file, "abc");
    return 0;
}

/* The one file of the cache; NULL when there is none. */
static char *only_cache_file(void)
{
    DIR *folder = opendir(cache_dir);
    assert_non_null(folder);
    char *found = NULL;
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;)
        if (entry->d_name[0] != '.') {
            assert_null(found);
            found = mem_format("%s/%s", cache_dir, entry->d_name);
        }
    closedir(folder);
    return found;
}

static int remove_folder(void **state)
{
    (void)state;
    char *cached = only_cache_file();
    if (cached != NULL)
        unlink(cached);
    free(cached);
    rmdir(cache_dir);
    unlink(model_file);
    rmdir(dir);
    free(model_file);
    free(cache_dir);
    return 0;
}

/* FIPS 180-2's own example. */
#define ABC "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

static void test_bytes_and_files_have_the_standards_digest(void **state)
{
    (void)state;
    char hex[DIGEST_HEX_SIZE];
    digest_of_bytes("abc", 3, hex);
    assert_string_equal(hex, ABC);
    assert_int_equal(digest_of_file(model_file, hex), STATUS_OK);
    assert_string_equal(hex, ABC);
    assert_int_equal(digest_of_file(dir, hex), STATUS_INVALID);
    assert_int_equal(digest_of_file("/nowhere/at/all", hex), STATUS_NOT_FOUND);
}

static void test_fields_do_not_run_into_each_other(void **state)
{
    (void)state;
    char first[DIGEST_HEX_SIZE], second[DIGEST_HEX_SIZE];
    digest_t *digest = digest_start();
    digest_add_field(digest, "ab", 2);
    digest_add_field(digest, "c", 1);
    digest_finish(digest, first);
    digest = digest_start();
    digest_add_field(digest, "a", 1);
    digest_add_field(digest, "bc", 2);
    digest_finish(digest, second);
    assert_string_not_equal(first, second);
}

static void test_a_models_digest_is_kept_and_read_again(void **state)
{
    (void)state;
    char digest[MODEL_DIGEST_SIZE];
    assert_int_equal(model_digest(model_file, cache_dir, digest), STATUS_OK);
    assert_string_equal(digest, "sha256:" ABC);
    char *cached = only_cache_file();
    assert_non_null(cached);
    assert_int_equal(model_digest(model_file, cache_dir, digest), STATUS_OK);
    struct stat before, after;
    assert_int_equal(stat(cached, &before), 0);
    assert_int_equal(model_digest(model_file, cache_dir, digest), STATUS_OK);
    assert_int_equal(stat(cached, &after), 0);
    assert_int_equal(before.st_ino, after.st_ino); /* not written again */
    free(cached);
}

static void test_a_changed_model_gets_a_new_digest(void **state)
{
    (void)state;
    char digest[MODEL_DIGEST_SIZE], hex[DIGEST_HEX_SIZE];
    assert_int_equal(model_digest(model_file, cache_dir, digest), STATUS_OK);
    struct stat before;
    assert_int_equal(stat(model_file, &before), 0);
    write_file(model_file, "abd"); /* same inode and size */
    struct timespec times[2] = {before.st_atim, before.st_mtim};
    assert_int_equal(utimensat(AT_FDCWD, model_file, times, 0), 0); /* and the same mtime */
    assert_int_equal(model_digest(model_file, cache_dir, digest), STATUS_OK);
    digest_of_bytes("abd", 3, hex);
    assert_string_equal(digest + strlen("sha256:"), hex);
}

static void test_a_damaged_cache_costs_time_and_never_the_answer(void **state)
{
    (void)state;
    char digest[MODEL_DIGEST_SIZE];
    assert_int_equal(model_digest(model_file, cache_dir, digest), STATUS_OK);
    char *cached = only_cache_file();
    FILE *file = fopen(cached, "r+e");
    assert_non_null(file);
    char text[1024];
    size_t n = fread(text, 1, sizeof text - 1, file);
    text[n] = 0;
    char *at = strstr(text, "sha256:") + strlen("sha256:");
    *at = *at == '0' ? '1' : '0'; /* a well-formed digest of something else */
    rewind(file);
    assert_int_equal(fwrite(text, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(model_digest(model_file, cache_dir, digest), STATUS_OK);
    assert_string_equal(digest, "sha256:" ABC);
    assert_int_equal(truncate(cached, 40), 0);
    assert_int_equal(model_digest(model_file, cache_dir, digest), STATUS_OK);
    assert_string_equal(digest, "sha256:" ABC);
    free(cached);
    assert_int_equal(model_digest(model_file, "/nowhere/at/all", digest), STATUS_OK);
    assert_int_equal(model_digest(model_file, NULL, digest), STATUS_OK);
    assert_string_equal(digest, "sha256:" ABC);
    assert_int_equal(model_digest("/nowhere/at/all", NULL, digest), STATUS_NOT_FOUND);
}

static void test_each_part_of_a_text_identity_changes_it(void **state)
{
    (void)state;
    const model_identity_t base = {"sha256:aa", "native", "bf16", 1, "cpu", "", ""};
    model_identity_t others[8] = {base, base, base, base, base, base, base, base};
    others[0].model_digest = "sha256:ab";
    others[1].activations = "f32";
    others[2].kv_type = "f32";
    others[3].numerics_version = 2;
    others[4].backend = "cuda";
    others[5].adapter = "a";
    others[6].quantize = "q8";
    others[7].kv_type = "int8";
    char hex[DIGEST_HEX_SIZE], again[DIGEST_HEX_SIZE], other[DIGEST_HEX_SIZE];
    model_text_identity(&base, hex);
    model_text_identity(&base, again);
    assert_string_equal(hex, again);
    assert_int_equal(strlen(hex), 64);
    for (size_t i = 0; i < 8; i++) {
        model_text_identity(&others[i], other);
        assert_string_not_equal(hex, other);
    }
}

int main(void)
{
#define WITH_FOLDER(test) cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)
    const struct CMUnitTest tests[] = {
        WITH_FOLDER(test_bytes_and_files_have_the_standards_digest),
        cmocka_unit_test(test_fields_do_not_run_into_each_other),
        WITH_FOLDER(test_a_models_digest_is_kept_and_read_again),
        WITH_FOLDER(test_a_changed_model_gets_a_new_digest),
        WITH_FOLDER(test_a_damaged_cache_costs_time_and_never_the_answer),
        cmocka_unit_test(test_each_part_of_a_text_identity_changes_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
