/* What makes a directory one model: its digest, that its files lie inside, and that a rank's rows
 * are checked against the seal, each byte of a matrix's parts included. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/memory.h"
#include "common/model/model.h"
#include "common/model/safetensors.h"
#include "common/model/source.h"
#include "tests/unit/model/safetensors_draft.h"

static void copy_file(const char *from_folder, const char *to_folder, const char *name)
{
    char *path = mem_format("%s/%s", from_folder, name);
    FILE *file = fopen(path, "re");
    assert_non_null(file);
    buffer_t bytes = {0};
    char piece[4096];
    for (size_t n; (n = fread(piece, 1, sizeof piece, file)) > 0;)
        buffer_append(&bytes, piece, n);
    fclose(file);
    folder_write(to_folder, name, bytes.data, bytes.size);
    buffer_release(&bytes);
    free(path);
}

/* A writable copy of a recorded model of one shard. */
static char *copy_model(const char *name)
{
    char *from = mem_format("%s/%s", SHOAL_TEST_DATA, name);
    char *folder = folder_new();
    copy_file(from, folder, "config.json");
    copy_file(from, folder, "generation_config.json");
    copy_file(from, folder, "tokenizer.json");
    copy_file(from, folder, "model.safetensors");
    free(from);
    return folder;
}

static void flip(const char *folder, const char *name, uint64_t offset)
{
    char *path = mem_format("%s/%s", folder, name);
    FILE *file = fopen(path, "r+e");
    assert_non_null(file);
    assert_int_equal(fseek(file, (long)offset, SEEK_SET), 0);
    int byte = fgetc(file);
    assert_int_equal(fseek(file, (long)offset, SEEK_SET), 0);
    fputc(byte ^ 1, file);
    assert_int_equal(fclose(file), 0);
    free(path);
}

static void ignore(void *context, const char *name, const char *problem)
{
    (void)context, (void)name, (void)problem;
}

/* --- the seal --- */

/* Flips one byte under an open model and says whether these rows, checked against the seal made
 * before, are right. */
static status_t verify_with_flip(const char *folder, uint64_t offset, const char *tensor,
                                 uint64_t row, uint64_t n)
{
    source_t *source;
    manifest_t *seal;
    assert_int_equal(source_open(folder, &source), STATUS_OK);
    assert_int_equal(manifest_open(folder, &seal), STATUS_OK);
    flip(folder, "model.safetensors", offset);
    status_t status = source_verify_rows(source, seal, source_tensor(source, tensor), row, n);
    manifest_close(seal);
    source_close(source);
    flip(folder, "model.safetensors", offset);
    return status;
}

/* Seals the weights in chunks so small that each tensor has its own. */
static void seal_finely(const char *folder)
{
    enum { CHUNK = 4096 };
    static const char name[] = "model.safetensors";
    char *path = mem_format("%s/%s", folder, name);
    char hex[DIGEST_HEX_SIZE];
    safetensors_t *file;
    buffer_t seal = {0};
    assert_int_equal(safetensors_open(path, &file), STATUS_OK);
    const uint8_t *bytes = safetensors_bytes(file);
    size_t n = (size_t)safetensors_file_bytes(file);
    digest_of_bytes(bytes, n, hex);
    buffer_format(&seal, "%s  %s\n# chunks %d %zu %s\n", hex, name, CHUNK, n, name);
    for (size_t at = 0; at < n; at += CHUNK) {
        digest_of_bytes(bytes + at, n - at < CHUNK ? n - at : CHUNK, hex);
        buffer_format(&seal, "#%s\n", hex);
    }
    folder_write(folder, "manifest.sha256", seal.data, seal.size);
    safetensors_close(file);
    buffer_release(&seal);
    free(path);
}

/* Each part of the matrix, changed in its last byte, spoils the rows; a change elsewhere does
 * not. */
static void check_parts(const char *model, const char *tensor, const char *const *parts)
{
    char *folder = copy_model(model);
    char *path = mem_format("%s/model.safetensors", folder);
    safetensors_t *file;
    seal_finely(folder);
    assert_int_equal(safetensors_open(path, &file), STATUS_OK);
    for (size_t i = 0; parts[i] != NULL; i++) {
        const safetensors_tensor_t *part = safetensors_find(file, parts[i]);
        assert_non_null(part);
        source_t *source;
        assert_int_equal(source_open(folder, &source), STATUS_OK);
        uint64_t rows = source_tensor(source, tensor)->rows;
        source_close(source);
        uint64_t offset = part->offset + part->bytes - 1;
        if (verify_with_flip(folder, offset, tensor, 0, rows) != STATUS_INVALID)
            fail_msg("%s: a change in %s is not seen", model, parts[i]);
        assert_non_null(strstr(status_text(), "model.safetensors is not as sealed"));
    }
    const safetensors_tensor_t *norm = safetensors_find(file, "model.norm.weight");
    if (norm != NULL)
        assert_int_equal(verify_with_flip(folder, safetensors_file_bytes(file) - 1, tensor, 0, 0),
                         STATUS_OK);
    safetensors_close(file);
    free(path);
    folder_remove(folder);
}

static void test_a_change_in_any_part_of_a_matrix_is_seen_by_who_maps_it(void **state)
{
    (void)state;
#define M "model.layers.0.mlp.down_proj."
    check_parts("llama-tied-f32", M "weight", (const char *[]){M "weight", NULL});
    check_parts("qwen2-awq-g128", M "weight",
                (const char *[]){M "qweight", M "qzeros", M "scales", NULL});
    check_parts("qwen2-gptq-actorder", M "weight",
                (const char *[]){M "qweight", M "qzeros", M "scales", M "g_idx", NULL});
    check_parts("qwen2-ct-w4a16", M "weight",
                (const char *[]){M "weight_packed", M "weight_scale", NULL});
    check_parts("deepseek-v3-fp8", M "weight",
                (const char *[]){M "weight", M "weight_scale_inv", NULL});
#undef M
#define E "model.layers.0.mlp.experts.down_proj"
    check_parts("gpt-oss-mxfp4", E, (const char *[]){E "_blocks", E "_scales", NULL});
    check_parts("gpt-oss-bf16", E, (const char *[]){E, NULL});
#undef E
}

/* Each part lies in chunks of its own, so that none is read with its neighbour. */
static void test_each_part_of_a_matrix_is_checked_by_itself(void **state)
{
    (void)state;
    static const char *const parts[] = {"m.qweight", "m.qzeros", "m.scales", "m.g_idx"};
    char *folder = folder_new();
    st_draft_t draft = {0};
    int32_t groups[64] = {0};
    st_add(&draft, parts[0], "I32", "[8,8]", NULL, 256);
    st_add(&draft, "pad0", "I8", "[8192]", NULL, 8192);
    st_add(&draft, parts[1], "I32", "[2,1]", NULL, 8);
    st_add(&draft, "pad1", "I8", "[8192]", NULL, 8192);
    st_add(&draft, parts[2], "F16", "[2,8]", NULL, 32);
    st_add(&draft, "pad2", "I8", "[8192]", NULL, 8192);
    st_add(&draft, parts[3], "I32", "[64]", groups, sizeof groups);
    folder_write_text(folder, "config.json", "{\"quantization_config\":{\"quant_method\":\"gptq\","
                                             "\"bits\":4,\"group_size\":32}}");
    folder_write_draft(folder, "model.safetensors", &draft);
    seal_finely(folder);
    char *path = mem_format("%s/model.safetensors", folder);
    safetensors_t *file;
    assert_int_equal(safetensors_open(path, &file), STATUS_OK);
    for (size_t i = 0; i < 4; i++)
        if (verify_with_flip(folder, safetensors_find(file, parts[i])->offset, "m.weight", 0, 1) !=
            STATUS_INVALID)
            fail_msg("a change in %s is not seen", parts[i]);
    uint64_t pad = safetensors_find(file, "pad1")->offset + 4096;
    assert_int_equal(verify_with_flip(folder, pad, "m.weight", 0, 8), STATUS_OK);
    safetensors_close(file);
    free(path);
    folder_remove(folder);
}

/* Where converted rows follow one another in the file, a rank answers for its own. */
static void test_converted_rows_are_checked_by_their_own_bytes(void **state)
{
    (void)state;
    char *folder = folder_new();
    st_draft_t draft = {0};
    st_add(&draft, "m.weight", "F8_E4M3", "[64,1024]", NULL, 65536);
    folder_write_text(folder, "config.json", "{}");
    folder_write_draft(folder, "model.safetensors", &draft);
    seal_finely(folder);
    char *path = mem_format("%s/model.safetensors", folder);
    safetensors_t *file;
    assert_int_equal(safetensors_open(path, &file), STATUS_OK);
    uint64_t last = safetensors_file_bytes(file) - 1;
    assert_int_equal(verify_with_flip(folder, last, "m.weight", 0, 50), STATUS_OK);
    assert_int_equal(verify_with_flip(folder, last, "m.weight", 63, 1), STATUS_INVALID);
    safetensors_close(file);
    free(path);
    folder_remove(folder);
}

/* Rows far from the change lie in other chunks and are right. */
static void test_rows_that_a_rank_does_not_take_cost_it_nothing(void **state)
{
    (void)state;
    static const char name[] = "model.embed_tokens.weight";
    char *folder = copy_model("llama-tied-f32");
    char *path = mem_format("%s/model.safetensors", folder);
    safetensors_t *file;
    seal_finely(folder);
    assert_int_equal(safetensors_open(path, &file), STATUS_OK);
    const safetensors_tensor_t *tensor = safetensors_find(file, name);
    uint64_t rows = tensor->shape[0], row_bytes = tensor->bytes / rows;
    uint64_t offset = tensor->offset + tensor->bytes - 1;
    assert_true(tensor->bytes > 4 * 4096);
    assert_int_equal(verify_with_flip(folder, offset, name, 0, rows - 4096 / row_bytes - 1),
                     STATUS_OK);
    assert_int_equal(verify_with_flip(folder, offset, name, rows - 1, 1), STATUS_INVALID);
    safetensors_close(file);
    free(path);
    folder_remove(folder);
}

static status_t verify_files(const char *path)
{
    source_t *source;
    manifest_t *seal;
    assert_int_equal(source_open(path, &source), STATUS_OK);
    assert_int_equal(manifest_open(path, &seal), STATUS_OK);
    status_t status = source_verify_files(source, seal);
    manifest_close(seal);
    source_close(source);
    return status;
}

static void test_files_that_everybody_reads_are_checked_whole(void **state)
{
    (void)state;
    char *folder = copy_model("llama-tied-f32");
    assert_int_equal(manifest_seal(folder, NULL, ignore, NULL), STATUS_OK);
    assert_int_equal(verify_files(folder), STATUS_OK);
    folder_write_text(folder, "tokenizer.json", "{}");
    assert_int_equal(verify_files(folder), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "tokenizer.json is not as sealed: it has 2 bytes"));
    copy_file(SHOAL_TEST_DATA "/llama-tied-f32", folder, "tokenizer.json");
    assert_int_equal(verify_files(folder), STATUS_OK);
    folder_write_text(folder, "merges.txt", ""); /* nothing to map, and right */
    assert_int_equal(manifest_seal(folder, NULL, ignore, NULL), STATUS_OK);
    assert_int_equal(verify_files(folder), STATUS_OK);
    folder_write_text(folder, "merges.txt", "a b");
    assert_int_equal(verify_files(folder), STATUS_INVALID);
    folder_write_text(folder, "merges.txt", "");
    folder_write_text(folder, "special_tokens_map.json", "{}");
    assert_int_equal(verify_files(folder), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "it does not seal special_tokens_map.json"));
    folder_remove(folder);

    folder = folder_new();
    char *path = mem_format("%s/model.gguf", folder);
    copy_file(SHOAL_TEST_DATA "/gguf-llama-q4_0", folder, "model.gguf");
    assert_int_equal(manifest_seal(path, NULL, ignore, NULL), STATUS_OK);
    assert_int_equal(verify_files(path), STATUS_OK);
    flip(folder, "model.gguf", 100); /* inside a key */
    source_t *source;
    if (source_open(path, &source) == STATUS_OK) {
        source_close(source);
        assert_int_equal(verify_files(path), STATUS_INVALID);
    }
    free(path);
    folder_remove(folder);
}

/* --- the digest and the links of a directory --- */

static void test_the_digest_of_a_directory_follows_the_files_that_decide_the_text(void **state)
{
    (void)state;
    char *folder = copy_model("llama-tied-f32");
    char *cache = folder_new();
    char first[MODEL_DIGEST_SIZE], again[MODEL_DIGEST_SIZE];
    assert_int_equal(model_digest(folder, cache, first), STATUS_OK);
    assert_int_equal(strncmp(first, "sha256:", 7), 0);
    assert_int_equal(model_digest(folder, NULL, again), STATUS_OK);
    assert_string_equal(first, again);
    folder_write_text(folder, "README.md", "no part of the model");
    assert_int_equal(manifest_seal(folder, NULL, ignore, NULL), STATUS_OK);
    assert_int_equal(model_digest(folder, cache, again), STATUS_OK);
    assert_string_equal(first, again);
    folder_write_text(folder, "chat_template.jinja", "{{ messages }}");
    assert_int_equal(model_digest(folder, cache, again), STATUS_OK);
    assert_string_not_equal(first, again);
    char *path = mem_format("%s/chat_template.jinja", folder);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(model_digest(folder, cache, again), STATUS_OK);
    assert_string_equal(first, again);
    flip(folder, "model.safetensors", 3000);
    assert_int_equal(model_digest(folder, cache, again), STATUS_OK);
    assert_string_not_equal(first, again);
    free(path);
    folder_remove(cache);
    folder_remove(folder);
}

static void test_the_digest_of_shards_follows_the_index(void **state)
{
    (void)state;
    char *folder = folder_new();
    char first[MODEL_DIGEST_SIZE], again[MODEL_DIGEST_SIZE];
    folder_write_text(folder, "config.json", "{}");
    assert_int_equal(model_digest(folder, NULL, first), STATUS_INVALID);
    folder_write_text(folder, "model.safetensors.index.json",
                      "{\"weight_map\":{\"a\":\"x.safetensors\",\"b\":\"x.safetensors\"}}");
    folder_write_text(folder, "x.safetensors", "abc");
    folder_write_text(folder, "y.safetensors", "not named");
    assert_int_equal(model_digest(folder, NULL, first), STATUS_OK);
    folder_write_text(folder, "y.safetensors", "still not");
    assert_int_equal(model_digest(folder, NULL, again), STATUS_OK);
    assert_string_equal(first, again);
    folder_write_text(folder, "x.safetensors", "abd");
    assert_int_equal(model_digest(folder, NULL, again), STATUS_OK);
    assert_string_not_equal(first, again);
    folder_write_text(folder, "model.safetensors.index.json",
                      "{\"weight_map\":{\"a\":\"../x.safetensors\"}}");
    assert_int_equal(model_digest(folder, NULL, again), STATUS_INVALID);
    folder_remove(folder);
}

/* Also what once made a walk without end: a file of the model that is a link to its directory. */
static void test_links_out_of_the_folder_are_refused_in_directories_too(void **state)
{
    (void)state;
    char *models = folder_new(), *outside = folder_new();
    char *folder = mem_format("%s/m", models);
    char *target = mem_format("%s/config.json", outside);
    char *link = mem_format("%s/config.json", folder);
    char *weights = mem_format("%s/model.safetensors", folder);
    assert_int_equal(mkdir(folder, 0700), 0);
    folder_write_text(folder, "model.safetensors", "x");
    folder_write_text(outside, "config.json", "{}");
    assert_int_equal(model_check_inside(models, folder), STATUS_OK);
    assert_int_equal(symlink(target, link), 0);
    assert_int_equal(model_check_inside(models, folder), STATUS_REFUSED);
    assert_non_null(strstr(status_text(), "outside the model folder"));
    assert_int_equal(unlink(link), 0);
    assert_int_equal(symlink(".", link), 0);
    char digest[MODEL_DIGEST_SIZE];
    assert_int_equal(model_digest(folder, NULL, digest), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "config.json: not a regular file"));
    assert_int_equal(unlink(link), 0);
    assert_int_equal(unlink(weights), 0);
    assert_int_equal(rmdir(folder), 0);
    free(weights);
    free(link);
    free(target);
    free(folder);
    folder_remove(models);
    folder_remove(outside);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_change_in_any_part_of_a_matrix_is_seen_by_who_maps_it),
        cmocka_unit_test(test_each_part_of_a_matrix_is_checked_by_itself),
        cmocka_unit_test(test_converted_rows_are_checked_by_their_own_bytes),
        cmocka_unit_test(test_rows_that_a_rank_does_not_take_cost_it_nothing),
        cmocka_unit_test(test_files_that_everybody_reads_are_checked_whole),
        cmocka_unit_test(test_the_digest_of_a_directory_follows_the_files_that_decide_the_text),
        cmocka_unit_test(test_the_digest_of_shards_follows_the_index),
        cmocka_unit_test(test_links_out_of_the_folder_are_refused_in_directories_too),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
