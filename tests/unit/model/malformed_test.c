/* The lists of malformed models, one file each in tests/golden/malformed with its expected error
 * beside it: opened as a rank opens a model, and looked at with `shoal inspect`. SHOAL_MALFORMED
 * names the list: gguf, safetensors or seals. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/buffer.h"
#include "common/base/memory.h"
#include "common/base/text.h"
#include "common/model/manifest.h"
#include "common/model/model.h"
#include "common/model/source.h"
#include "tests/unit/model/safetensors_draft.h"

#define ROOT SHOAL_TEST_DATA "/malformed"

typedef struct {
    const char *file, *status, *words;
} row_t;

typedef struct {
    uint32_t n_files, n_right, n_wrong, n_inspected;
} counts_t;

static bool read_whole(const char *path, buffer_t *out)
{
    FILE *file = fopen(path, "rbe");
    if (file == NULL)
        return false;
    char piece[4096];
    for (size_t n; (n = fread(piece, 1, sizeof piece, file)) > 0;)
        buffer_append(out, piece, n);
    fclose(file);
    return true;
}

static void copy_into(const char *folder, const char *from_dir, const char *from, const char *to)
{
    char *path = mem_format("%s/%s", from_dir, from);
    buffer_t bytes = {0};
    if (!read_whole(path, &bytes))
        fail_msg("cannot read %s", path);
    folder_write(folder, to, bytes.data, bytes.size);
    buffer_release(&bytes);
    free(path);
}

/* --- one opening for each list; `*path_out` is what `shoal inspect` is to look at --- */

static status_t open_gguf(const char *dir, const char *file, const char *folder, char **path_out)
{
    (void)folder;
    model_t *model = NULL;
    *path_out = mem_format("%s/%s", dir, file);
    status_t status = model_open(*path_out, &model);
    if (status == STATUS_OK)
        model_close(model);
    return status;
}

/* The file as the weights of a directory, or the index of two right shards. */
static status_t open_safetensors(const char *dir, const char *file, const char *folder,
                                 char **path_out)
{
    source_t *source = NULL;
    folder_write_text(folder, "config.json", "{}");
    if (text_ends_with(file, ".index.json")) {
        copy_into(folder, dir, file, "model.safetensors.index.json");
        copy_into(folder, dir, "s1.safetensors", "s1.safetensors");
        copy_into(folder, dir, "s2.safetensors", "s2.safetensors");
        copy_into(folder, dir, "s3.safetensors", "s3.safetensors");
    } else {
        copy_into(folder, dir, file, "model.safetensors");
    }
    *path_out = mem_strdup(folder);
    status_t status = source_open(folder, &source);
    source_close(source);
    return status;
}

static status_t open_seal(const char *dir, const char *file, const char *folder, char **path_out)
{
    manifest_t *manifest = NULL;
    copy_into(folder, dir, file, "manifest.sha256");
    folder_write_text(folder, "a", "abc");
    *path_out = NULL; /* looking at a model does not read its seal */
    status_t status = manifest_open(folder, &manifest);
    manifest_close(manifest);
    return status;
}

typedef status_t (*open_fn)(const char *dir, const char *file, const char *folder,
                            char **path_out);

static open_fn opener(void)
{
    if (strcmp(SHOAL_MALFORMED, "gguf") == 0)
        return open_gguf;
    return strcmp(SHOAL_MALFORMED, "seals") == 0 ? open_seal : open_safetensors;
}

/* Broken files are described as far as they can be read, by a program that ends by itself, with an
 * exit code of its own and, where nothing can be read, with the words of the error. */
static bool inspect_is_sound(const row_t *row, const char *path)
{
    char *line = mem_format("'%s/shoal' inspect '%s' 2>&1", SHOAL_BIN_DIR, path), piece[512];
    buffer_t text = {0};
    FILE *pipe = popen(line, "re");
    assert_non_null(pipe);
    for (size_t n; (n = fread(piece, 1, sizeof piece, pipe)) > 0;)
        buffer_append(&text, piece, n);
    int code = pclose(pipe);
    bool sound = WIFEXITED(code) && (WEXITSTATUS(code) == 2 || WEXITSTATUS(code) == 4) &&
                 strstr(buffer_text(&text), row->words) != NULL &&
                 strstr(buffer_text(&text), "Sanitizer") == NULL;
    if (!sound)
        print_error("inspect %s: wait status %#x: %s\n", row->file, (unsigned)code,
                    buffer_text(&text));
    buffer_release(&text);
    free(line);
    return sound;
}

static void check_row(const char *dir, const row_t *row, counts_t *counts)
{
    char *folder = folder_new(), *path = NULL;
    status_t status = opener()(dir, row->file, folder, &path);
    bool right = strcmp(status_name(status), row->status) == 0 &&
                 (status == STATUS_OK || strstr(status_text(), row->words) != NULL);
    if (!right)
        print_error("%s: %s \"%s\"; expected %s \"%s\"\n", row->file, status_name(status),
                    status == STATUS_OK ? "" : status_text(), row->status, row->words);
    counts->n_right += status == STATUS_OK;
    counts->n_wrong += !right;
    /* A process each: every fourth. */
    if (status != STATUS_OK && path != NULL && counts->n_files % 4 == 0) {
        counts->n_wrong += !inspect_is_sound(row, path);
        counts->n_inspected++;
    }
    counts->n_files++;
    free(path);
    folder_remove(folder);
}

static counts_t check_list(const char *dir)
{
    counts_t counts = {0};
    buffer_t list = {0};
    char *path = mem_format("%s/expected.txt", dir), *line;
    if (!read_whole(path, &list))
        fail_msg("cannot read %s", path);
    buffer_append(&list, "", 1);
    char *rest = (char *)list.data;
    while ((line = strsep(&rest, "\n")) != NULL) {
        if (*line == 0 || *line == '#')
            continue;
        row_t row = {.file = strsep(&line, "\t"), .status = strsep(&line, "\t")};
        row.words = line;
        assert_non_null(row.words);
        check_row(dir, &row, &counts);
    }
    buffer_release(&list);
    free(path);
    return counts;
}

static void test_each_malformed_file_is_refused_with_its_own_words(void **state)
{
    (void)state;
    counts_t counts = check_list(ROOT "/" SHOAL_MALFORMED);
    print_message(SHOAL_MALFORMED ": %u files, %u of them right; %u were inspected; %u wrong\n",
                  counts.n_files, counts.n_right, counts.n_inspected, counts.n_wrong);
    assert_int_equal(counts.n_wrong, 0);
    assert_true(counts.n_files >= 27);
    /* A test that refuses everything would pass without these. */
    assert_true(counts.n_right >= 1);
}

/* Files of tens of megabytes are made here: what is refused must not depend on a small size. */
static void test_what_is_too_large_to_be_kept_is_refused_as_well(void **state)
{
    (void)state;
    char *folder = folder_new();
    char *line = mem_format("/usr/bin/python3 -B " ROOT "/make_malformed.py --large '%s'", folder);
    assert_int_equal(system(line), 0);
    uint32_t n_files = 0;
    static const char *const lists[] = {"gguf", "safetensors", "seals"};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        char *dir = mem_format("%s/%s", folder, lists[i]);
        if (strcmp(lists[i], SHOAL_MALFORMED) == 0 && access(dir, R_OK) == 0) {
            counts_t counts = check_list(dir);
            assert_int_equal(counts.n_wrong, 0);
            n_files = counts.n_files;
        }
        free(dir);
    }
    print_message(SHOAL_MALFORMED ": %u large files\n", n_files);
    assert_true(n_files > 0);
    free(line);
    line = mem_format("rm -r '%s'", folder);
    assert_int_equal(system(line), 0);
    free(line);
    free(folder);
}

static void test_the_files_are_what_their_program_writes(void **state)
{
    (void)state;
    assert_int_equal(system("/usr/bin/python3 -B " ROOT "/make_malformed.py --check"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_malformed_file_is_refused_with_its_own_words),
        cmocka_unit_test(test_the_files_are_what_their_program_writes),
        cmocka_unit_test(test_what_is_too_large_to_be_kept_is_refused_as_well),
    };
    size_t n = sizeof tests / sizeof *tests;
    /* Every list of GGUF files is short. */
    n -= strcmp(SHOAL_MALFORMED, "gguf") == 0;
    return _cmocka_run_group_tests(SHOAL_MALFORMED, tests, n, NULL, NULL);
}
