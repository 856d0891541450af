/* Models that are split into several GGUF files: any of them opens all, and what is not one whole
 * model is refused with the name of the file that is wrong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/memory.h"
#include "common/model/model.h"
#include "common/model/model_files.h"
#include "common/model/source.h"
#include "tests/unit/model/gguf_cut.h"
#include "tests/unit/model/safetensors_draft.h"

#define RECORDED "gguf-qwen3-f16"
enum { N_PARTS = 3 };

typedef struct {
    char *folder, *whole, *parts[N_PARTS];
} split_t;

static split_t cut(bool bare_first)
{
    split_t split = {.folder = folder_new(),
                     .whole = mem_format("%s/" RECORDED "/model.gguf", SHOAL_TEST_DATA)};
    gguf_cut(split.whole, split.folder, "m", N_PARTS, bare_first);
    for (uint32_t i = 0; i < N_PARTS; i++)
        split.parts[i] = gguf_cut_path(split.folder, "m", i + 1, N_PARTS);
    return split;
}

static void split_release(split_t *split)
{
    folder_remove(split->folder);
    free(split->whole);
    for (uint32_t i = 0; i < N_PARTS; i++)
        free(split->parts[i]);
}

static void copy(const char *from, const char *to)
{
    char *command = mem_format("cp '%s' '%s'", from, to);
    assert_int_equal(system(command), 0);
    free(command);
}

static void check_same(const char *path, const char *whole)
{
    gguf_t *split, *one;
    if (gguf_open(path, &split) != STATUS_OK || gguf_open(whole, &one) != STATUS_OK)
        fail_msg("%s", status_text());
    assert_int_equal(gguf_n_files(split), N_PARTS);
    assert_int_equal(gguf_n_tensors(split), gguf_n_tensors(one));
    uint64_t file_bytes = 0;
    for (size_t i = 0; i < N_PARTS; i++)
        file_bytes += gguf_file_at(split, i).n;
    assert_int_equal(gguf_file_bytes(split), file_bytes);
    for (size_t i = 0; i < gguf_n_tensors(one); i++) {
        const gguf_tensor_t *a = gguf_tensor_at(one, i);
        const gguf_tensor_t *b = gguf_tensor(split, a->name);
        assert_ptr_equal(b, gguf_tensor_at(split, i));
        assert_int_equal(a->type, b->type);
        assert_int_equal(a->bytes, b->bytes);
        assert_memory_equal(a->dims, b->dims, sizeof a->dims);
        assert_memory_equal(a->data, b->data, a->bytes);
    }
    uint32_t layers[2];
    assert_int_equal(gguf_read_u32(one, "qwen3.block_count", 1, 99, &layers[0]), STATUS_OK);
    assert_int_equal(gguf_read_u32(split, "qwen3.block_count", 1, 99, &layers[1]), STATUS_OK);
    assert_int_equal(layers[0], layers[1]);
    gguf_close(split);
    gguf_close(one);
}

static void test_any_file_of_a_split_model_opens_all_of_it(void **state)
{
    (void)state;
    for (int bare = 0; bare < 2; bare++) {
        split_t split = cut(bare == 1);
        for (uint32_t i = 0; i < N_PARTS; i++)
            check_same(split.parts[i], split.whole);
        split_release(&split);
    }
}

/* As download caches and `shoal up` make them. */
static void test_links_lead_to_the_other_files(void **state)
{
    (void)state;
    split_t split = cut(false);
    char *blobs = folder_new(), *names = folder_new();
    for (uint32_t i = 0; i < N_PARTS; i++) {
        char *blob = mem_format("%s/%u", blobs, i), *name = gguf_cut_path(names, "m", i + 1, N_PARTS);
        assert_int_equal(rename(split.parts[i], blob), 0);
        assert_int_equal(symlink(blob, name), 0);
        free(blob);
        free(name);
    }
    char *own = gguf_cut_path(names, "m", 2, N_PARTS);
    char *twice = mem_format("%s/other-00002-of-00003.gguf", split.folder);
    char *renamed = mem_format("%s/renamed.gguf", split.folder);
    assert_int_equal(symlink(own, twice), 0);
    assert_int_equal(symlink(own, renamed), 0);
    const char *const paths[] = {own, twice, renamed};
    for (size_t i = 0; i < 3; i++) {
        check_same(paths[i], split.whole);
        char *real = model_file_real(paths[i]);
        assert_string_equal(real, own);
        free(real);
    }
    char *name = model_files_name(own);
    assert_string_equal(name, "m");
    free(name);
    free(own);
    free(twice);
    free(renamed);
    folder_remove(blobs);
    folder_remove(names);
    split_release(&split);
}

static void check_refused(const char *path, const char *const *words)
{
    gguf_t *gguf;
    status_t status = gguf_open(path, &gguf);
    if (status == STATUS_OK)
        fail_msg("%s opens; \"%s\" was expected", path, words[0]);
    assert_int_equal(status, STATUS_INVALID);
    for (size_t i = 0; words[i] != NULL; i++)
        if (strstr(status_text(), words[i]) == NULL)
            fail_msg("\"%s\" does not say \"%s\"", status_text(), words[i]);
}
#define REFUSED(path, ...) check_refused(path, (const char *const[]){__VA_ARGS__, NULL})

static void test_a_missing_file_is_named(void **state)
{
    (void)state;
    split_t split = cut(false);
    assert_int_equal(unlink(split.parts[1]), 0);
    REFUSED(split.parts[0], "file 2 of 3", "m-00002-of-00003.gguf", "is not there");
    REFUSED(split.parts[2], "m-00003-of-00003.gguf: file 2 of 3", "is not there");
    split_release(&split);
}

static void test_files_that_are_not_one_model_are_refused(void **state)
{
    (void)state;
    const uint16_t no = 0, four = 4, two = 2;
    const int32_t more = 1000;
    split_t split = cut(false);
    gguf_cut_patch(split.parts[1], "split.no", &no, sizeof no);
    REFUSED(split.parts[0], "m-00002-of-00003.gguf", "file 1 of 3; 2 of 3 would be right");
    REFUSED(split.parts[1], "m-00002-of-00003.gguf", "its name must end in -00001-of-00003.gguf");
    split_release(&split);

    split = cut(false);
    gguf_cut_patch(split.parts[2], "split.count", &four, sizeof four);
    REFUSED(split.parts[0], "m-00003-of-00003.gguf", "file 3 of 4; 3 of 3 would be right");
    REFUSED(split.parts[2], "its name must end in -00003-of-00004.gguf");
    split_release(&split);

    split = cut(false);
    gguf_cut_patch(split.parts[2], "split.tensors.count", &more, sizeof more);
    REFUSED(split.parts[0], "m-00003-of-00003.gguf", "split.tensors.count is 1000", "another model");
    gguf_cut_patch(split.parts[0], "split.tensors.count", &more, sizeof more);
    gguf_cut_patch(split.parts[1], "split.tensors.count", &more, sizeof more);
    REFUSED(split.parts[1], "its 3 files have", "split.tensors.count says 1000");
    split_release(&split);

    split = cut(false);
    copy(split.parts[1], split.parts[2]); /* as many tensors as the file that is not there */
    gguf_cut_patch(split.parts[2], "split.no", &two, sizeof two);
    REFUSED(split.parts[0], "tensor blk.", "is in two files");
    split_release(&split);

    split = cut(false);
    copy(split.whole, split.parts[1]);
    REFUSED(split.parts[0], "m-00002-of-00003.gguf", "split.count is missing");
    copy(split.whole, split.parts[0]); /* what it is by its keys, its digest would not be by its name */
    REFUSED(split.parts[0], "by its name it is one of 3 files", "split.count");
    split_release(&split);
}

static void test_a_file_of_another_model_is_refused_by_its_keys(void **state)
{
    (void)state;
    split_t split = cut(false);
    /* Publishers may repeat keys; then all must agree. */
    gguf_cut(split.whole, split.folder, "n", 1, false);
    char *other = gguf_cut_path(split.folder, "n", 1, 1);
    const uint16_t one = 1, three = 3;
    const uint32_t layers = 99;
    copy(other, split.parts[1]);
    gguf_cut_patch(split.parts[1], "split.no", &one, sizeof one);
    gguf_cut_patch(split.parts[1], "split.count", &three, sizeof three);
    REFUSED(split.parts[0], "its 3 files have");
    gguf_cut_patch(split.parts[1], "qwen3.block_count", &layers, sizeof layers);
    REFUSED(split.parts[0], "m-00002-of-00003.gguf", "qwen3.block_count", "another model");
    free(other);
    split_release(&split);
}

static void test_one_file_in_memory_is_refused(void **state)
{
    (void)state;
    split_t split = cut(false);
    gguf_t *gguf, *again;
    assert_int_equal(gguf_open(split.parts[0], &gguf), STATUS_OK);
    gguf_file_t file = gguf_file_at(gguf, 0);
    assert_int_equal(gguf_open_bytes("part", file.bytes, file.n, &again), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "one of several files"));
    gguf_close(gguf);
    split_release(&split);
}

static void test_the_digest_is_that_of_all_files_whatever_they_are_called(void **state)
{
    (void)state;
    char digests[5][MODEL_DIGEST_SIZE];
    split_t split = cut(false);
    gguf_cut(split.whole, split.folder, "other", N_PARTS, false);
    char *other = gguf_cut_path(split.folder, "other", 3, N_PARTS);
    const char *const paths[] = {split.parts[0], split.parts[2], other};
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(model_digest(paths[i], NULL, digests[i]), STATUS_OK);
        assert_string_equal(digests[i], digests[0]);
        assert_int_equal(model_check_inside(split.folder, paths[i]), STATUS_OK);
    }
    const uint32_t layers = 99;
    gguf_cut_patch(split.parts[0], "qwen3.block_count", &layers, sizeof layers);
    assert_int_equal(model_digest(split.parts[2], NULL, digests[3]), STATUS_OK);
    assert_string_not_equal(digests[3], digests[0]);
    free(other);
    split_release(&split);
}

static void count_file(void *context, const char *name, const char *problem)
{
    assert_non_null(name);
    if (problem == NULL)
        ++*(int *)context;
}

static status_t verify_all(const char *path)
{
    source_t *source;
    manifest_t *manifest;
    if (source_open(path, &source) != STATUS_OK || manifest_open(path, &manifest) != STATUS_OK)
        fail_msg("%s", status_text());
    status_t status = source_verify_files(source, manifest);
    for (size_t i = 0; i < source_n_tensors(source) && status == STATUS_OK; i++) {
        const source_tensor_t *tensor = source_tensor_at(source, i);
        status = source_verify_rows(source, manifest, tensor, 0, tensor->rows);
    }
    manifest_close(manifest);
    source_close(source);
    return status;
}

static void test_a_seal_covers_every_file(void **state)
{
    (void)state;
    split_t split = cut(false);
    int n = 0;
    assert_int_equal(manifest_seal(split.parts[1], NULL, count_file, &n), STATUS_OK);
    assert_int_equal(n, N_PARTS);
    assert_int_equal(manifest_verify(split.parts[2], NULL, count_file, &n), STATUS_OK);
    assert_int_equal(n, 2 * N_PARTS);
    assert_int_equal(verify_all(split.parts[0]), STATUS_OK);
    FILE *file = fopen(split.parts[2], "r+be"); /* the last value of the last tensor */
    assert_non_null(file);
    assert_int_equal(fseek(file, -64, SEEK_END), 0);
    int byte = fgetc(file);
    assert_int_equal(fseek(file, -64, SEEK_END), 0);
    fputc(byte ^ 1, file);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(verify_all(split.parts[0]), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "m-00003-of-00003.gguf"));
    assert_int_equal(manifest_verify(split.parts[0], NULL, count_file, &n), STATUS_CONFLICT);
    split_release(&split);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_file_of_a_split_model_opens_all_of_it),
        cmocka_unit_test(test_links_lead_to_the_other_files),
        cmocka_unit_test(test_a_missing_file_is_named),
        cmocka_unit_test(test_files_that_are_not_one_model_are_refused),
        cmocka_unit_test(test_a_file_of_another_model_is_refused_by_its_keys),
        cmocka_unit_test(test_one_file_in_memory_is_refused),
        cmocka_unit_test(test_the_digest_is_that_of_all_files_whatever_they_are_called),
        cmocka_unit_test(test_a_seal_covers_every_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
