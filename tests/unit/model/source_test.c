/* Directories and GGUF files as one list of tensors: what is listed, what is refused and with which
 * words (S22 and S23 of the list of malformed inputs are files, see malformed_test.c). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/model/safetensors.h"
#include "common/model/source.h"
#include "tests/unit/model/safetensors_draft.h"

static void write_two(const char *folder, const char *file, const char *first, const char *second)
{
    st_draft_t draft = {0};
    st_add(&draft, first, "F32", "[2,2]", NULL, 16);
    if (second != NULL)
        st_add(&draft, second, "BF16", "[3]", NULL, 6);
    folder_write_draft(folder, file, &draft);
}

/* Opens, expects a failure with this text, removes the folder. */
static void check_refused(char *take_folder, status_t expected, const char *text)
{
    source_t *source = NULL;
    status_t status = source_open(take_folder, &source);
    if (status != expected || strstr(status_text(), text) == NULL)
        fail_msg("%s \"%s\"; expected %s with \"%s\"", status_name(status), status_text(),
                 status_name(expected), text);
    folder_remove(take_folder);
}

/* --- files --- */

static void test_a_directory_without_its_files_is_refused_by_name(void **state)
{
    (void)state;
    source_t *source;
    assert_int_equal(source_open("/nowhere/at/all", &source), STATUS_NOT_FOUND);
    check_refused(folder_new(), STATUS_INVALID, "has no config.json; a model is one GGUF file");
    char *folder = folder_new();
    folder_write_text(folder, "config.json", "{}");
    check_refused(folder, STATUS_INVALID,
                  "has neither model.safetensors nor model.safetensors.index.json");
    folder = folder_new();
    folder_write_text(folder, "config.json", "[]");
    write_two(folder, "model.safetensors", "a", NULL);
    check_refused(folder, STATUS_INVALID, "config.json holds array; it must be an object");
    folder = folder_new();
    folder_write_text(folder, "config.json", "{}");
    folder_write_text(folder, "generation_config.json", "{");
    write_two(folder, "model.safetensors", "a", NULL);
    check_refused(folder, STATUS_INVALID, "generation_config.json is not JSON");
    folder = folder_new();
    st_draft_t none = {0};
    folder_write_text(folder, "config.json", "{}");
    folder_write_draft(folder, "model.safetensors", &none);
    check_refused(folder, STATUS_INVALID, "the model has no tensors");
}

static char *indexed_folder(const char *index)
{
    char *folder = folder_new();
    folder_write_text(folder, "config.json", "{}");
    write_two(folder, "s1.safetensors", "a", "b");
    write_two(folder, "s2.safetensors", "c", NULL);
    folder_write_text(folder, "model.safetensors.index.json", index);
    return folder;
}

/* The index says nothing about b: it is listed all the same, for the architecture to judge. */
static void test_shards_give_one_list_in_the_order_of_names(void **state)
{
    (void)state;
    char *folder =
        indexed_folder("{\"weight_map\":{\"a\":\"s1.safetensors\",\"c\":\"s2.safetensors\"}}");
    source_t *source;
    assert_int_equal(source_open(folder, &source), STATUS_OK);
    assert_true(source_is_directory(source) && source_gguf(source) == NULL);
    assert_true(json_is_object(source_config(source)));
    assert_null(source_generation_config(source));
    assert_int_equal(source_n_tensors(source), 3);
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(source_tensor_at(source, i)->name[0], 'a' + (int)i);
        assert_ptr_equal(source_tensor(source, source_tensor_at(source, i)->name),
                         source_tensor_at(source, i));
    }
    assert_null(source_tensor(source, "d"));
    const source_tensor_t *b = source_tensor(source, "b");
    assert_int_equal(b->type, QTYPE_BF16);
    assert_true(b->n_dims == 1 && b->columns == 3 && b->rows == 1 && b->bytes == 6);
    source_close(source);
    folder_remove(folder);
}

/* --- plain tensors --- */

/* An odd tensor in front moves the others off their alignment. */
static void test_data_is_aligned_or_copied(void **state)
{
    (void)state;
    static const float values[4] = {1, -2, 3, 4};
    char *folder = folder_new();
    st_draft_t draft = {0};
    st_add(&draft, "a", "I8", "[3]", NULL, 3);
    st_add(&draft, "b", "F32", "[2,2]", values, sizeof values);
    st_add(&draft, "scalar", "F32", "[]", values + 1, sizeof *values);
    folder_write_text(folder, "config.json", "{}");
    folder_write_draft(folder, "model.safetensors", &draft);
    source_t *source;
    assert_int_equal(source_open(folder, &source), STATUS_OK);
    const source_tensor_t *b = source_tensor(source, "b");
    assert_null(b->data);
    float row[2];
    assert_int_equal(source_read_rows(b, 1, 1, (uint8_t *)row), STATUS_OK);
    assert_memory_equal(row, values + 2, sizeof row);
    assert_int_equal(source_read_rows(b, 2, 0, (uint8_t *)row), STATUS_OK);
    const source_tensor_t *scalar = source_tensor(source, "scalar");
    assert_true(scalar->n_dims == 1 && scalar->columns == 1 && scalar->bytes == 4);
    source_close(source);
    folder_remove(folder);
}

static void test_types_that_cannot_be_used_are_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *dtype, *shape, *text;
        size_t bytes;
        status_t status;
    } cases[] = {
        {"BOOL", "[2]", "tensor t is BOOL, which cannot be used as it is", 2, STATUS_UNSUPPORTED},
        {"F8_E5M2", "[2]", "tensor t is F8_E5M2", 2, STATUS_UNSUPPORTED},
        {"F32", "[1,1,1,1,1]", "tensor t has 5 dimensions", 4, STATUS_UNSUPPORTED},
        {"F32", "[3,0]", "tensor t is empty", 0, STATUS_INVALID},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *folder = folder_new();
        st_draft_t draft = {0};
        st_add(&draft, "t", cases[i].dtype, cases[i].shape, NULL, cases[i].bytes);
        folder_write_text(folder, "config.json", "{}");
        folder_write_draft(folder, "model.safetensors", &draft);
        check_refused(folder, cases[i].status, cases[i].text);
    }
}

static const safetensors_tensor_t *find_stored(safetensors_t *const *files, size_t n,
                                               const char *name)
{
    const safetensors_tensor_t *found = NULL;
    for (size_t i = 0; i < n && found == NULL; i++)
        found = safetensors_find(files[i], name);
    return found;
}

/* Opens the files of a recorded directory by themselves. */
static size_t open_files(const char *path, safetensors_t *files[8])
{
    size_t n = 0;
    for (int of = 1; of <= 4; of++)
        for (int shard = 1; shard <= of; shard++) {
            char *file = of == 1 ? mem_format("%s/model.safetensors", path)
                                 : mem_format("%s/model-%05d-of-%05d.safetensors", path, shard, of);
            n += safetensors_open(file, &files[n]) == STATUS_OK;
            free(file);
        }
    return n;
}

/* Everything of the files is listed, as it is, with its shape turned around. */
static void test_plain_directories_list_each_stored_tensor(void **state)
{
    (void)state;
    static const char *const names[] = {
        "deepseek-v2-group", "deepseek-v2-lite", "deepseek-v3", "deepseek-v32-dsa", "deepseek-v4",
        "gemma2", "gemma3-text", "llama-gqa-bf16", "llama-tied-f32", "llama3-rope-sharded",
        "mistral-swa", "mixtral", "qwen2-f16", "qwen2-moe", "qwen2-yarn", "qwen3-moe",
        "qwen3-qknorm",
    };
    for (size_t m = 0; m < sizeof names / sizeof *names; m++) {
        char *path = mem_format("%s/%s", SHOAL_TEST_DATA, names[m]);
        source_t *source;
        safetensors_t *files[8] = {0};
        size_t n_files = open_files(path, files), n = 0;
        assert_true(n_files > 0);
        if (source_open(path, &source) != STATUS_OK)
            fail_msg("%s", status_text());
        assert_non_null(source_generation_config(source));
        for (size_t i = 0; i < n_files; i++)
            n += safetensors_n_tensors(files[i]);
        assert_int_equal(source_n_tensors(source), n);
        for (size_t i = 0; i < n; i++) {
            const source_tensor_t *tensor = source_tensor_at(source, i);
            const safetensors_tensor_t *stored = find_stored(files, n_files, tensor->name);
            assert_string_equal(qtype_name((uint32_t)tensor->type),
                                safetensors_dtype_name(stored->dtype));
            assert_true(tensor->bytes == stored->bytes && tensor->n_dims == stored->n_dims);
            for (uint32_t d = 0; d < tensor->n_dims; d++)
                assert_true(tensor->dims[d] == stored->shape[tensor->n_dims - 1 - d]);
            assert_non_null(tensor->data);
            assert_memory_equal(tensor->data, stored->data, stored->bytes);
        }
        source_close(source);
        for (size_t i = 0; i < n_files; i++)
            safetensors_close(files[i]);
        free(path);
    }
}

static void test_transposed_experts_are_turned(void **state)
{
    (void)state;
    safetensors_t *file;
    source_t *source;
    const char *name = "model.layers.0.mlp.experts.gate_up_proj";
    assert_int_equal(source_open(SHOAL_TEST_DATA "/gpt-oss-bf16", &source), STATUS_OK);
    assert_int_equal(safetensors_open(SHOAL_TEST_DATA "/gpt-oss-bf16/model.safetensors", &file),
                     STATUS_OK);
    const safetensors_tensor_t *stored = safetensors_find(file, name);
    const source_tensor_t *tensor = source_tensor(source, name);
    uint64_t experts = stored->shape[0], in = stored->shape[1], out = stored->shape[2];
    assert_true(tensor->dims[0] == in && tensor->dims[1] == out && tensor->dims[2] == experts);
    assert_true(in != out && tensor->rows == out * experts && tensor->data == NULL);
    /* The last rows of one expert and the first of the next. */
    uint64_t first = out - 40, n = 80;
    uint16_t *rows = MEM_NEW_ARRAY(uint16_t, n * in);
    assert_int_equal(source_read_rows(tensor, first, n, (uint8_t *)rows), STATUS_OK);
    for (uint64_t r = 0; r < n; r++)
        for (uint64_t i = 0; i < in; i++) {
            uint64_t e = (first + r) / out, o = (first + r) % out;
            assert_memory_equal(&rows[r * in + i], stored->data + 2 * ((e * in + i) * out + o), 2);
        }
    free(rows);
    source_close(source);
    safetensors_close(file);
}

/* --- online quantization --- */

static void test_a_view_reads_as_the_rows_of_its_tensor_quantized(void **state)
{
    (void)state;
    source_t *source;
    assert_int_equal(source_open(SHOAL_TEST_DATA "/llama-gqa-bf16", &source), STATUS_OK);
    const source_tensor_t *base = source_tensor(source, "model.layers.0.mlp.gate_proj.weight");
    static const qtype_t types[] = {QTYPE_Q8_0, QTYPE_Q4_0, QTYPE_Q4_1, QTYPE_F8S};
    float *values = MEM_NEW_ARRAY(float, base->columns);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        source_tensor_t view, again;
        assert_true(source_tensor_quantized(base, types[i], &view));
        assert_true(view.type == types[i] && view.data == NULL && view.rows == base->rows);
        assert_int_equal(view.bytes, view.rows * view.row_bytes);
        assert_string_equal(view.name, base->name);
        uint8_t *rows = mem_new((size_t)view.bytes, 1);
        uint8_t *row = mem_new((size_t)view.row_bytes, 1);
        assert_int_equal(source_read_rows(&view, 0, view.rows, rows), STATUS_OK);
        for (uint64_t r = 0; r < view.rows; r++) {
            qtype_dequantize_row(base->type, base->data + r * base->row_bytes, base->columns,
                                 values);
            assert_true(qtype_quantize_row(types[i], values, base->columns, row));
            assert_memory_equal(rows + r * view.row_bytes, row, view.row_bytes);
        }
        assert_int_equal(source_read_rows(&view, 5, 1, row), STATUS_OK);
        assert_memory_equal(rows + 5 * view.row_bytes, row, view.row_bytes);
        assert_false(source_tensor_quantized(&view, types[i], &again));
        free(row);
        free(rows);
    }
    source_tensor_t view;
    assert_false(source_tensor_quantized(base, QTYPE_Q6_K, &view));
    free(values);
    source_close(source);
}

static void test_a_view_of_values_that_do_not_fit_fails_by_row(void **state)
{
    (void)state;
    float values[3 * 32] = {[2 * 32 + 7] = 1e30f};
    char *folder = folder_new();
    st_draft_t draft = {0};
    st_add(&draft, "m", "F32", "[3,32]", values, sizeof values);
    folder_write_text(folder, "config.json", "{}");
    folder_write_draft(folder, "model.safetensors", &draft);
    source_t *source;
    source_tensor_t view;
    uint8_t rows[3 * 34];
    assert_int_equal(source_open(folder, &source), STATUS_OK);
    assert_true(source_tensor_quantized(source_tensor(source, "m"), QTYPE_Q8_0, &view));
    assert_int_equal(source_read_rows(&view, 0, 2, rows), STATUS_OK);
    assert_int_equal(source_read_rows(&view, 0, 3, rows), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "tensor m: row 2 holds a value that is not finite"));
    source_close(source);
    folder_remove(folder);
}

/* --- GGUF --- */

/* One layout has the latent up-projections as one matrix, the newer one as two by head. */
static void test_both_layouts_of_deepseek2_files_open(void **state)
{
    (void)state;
    source_t *lite, *v3;
    assert_int_equal(source_open(SHOAL_TEST_DATA "/gguf-deepseek2-lite-f16/model.gguf", &lite),
                     STATUS_OK);
    assert_int_equal(source_open(SHOAL_TEST_DATA "/gguf-deepseek2-v3-q8_0/model.gguf", &v3),
                     STATUS_OK);
    assert_true(!source_is_directory(lite) && source_config(lite) == NULL);
    assert_true(source_gguf(lite) != NULL && source_bytes(lite) > 900000);
    assert_non_null(source_tensor(lite, "blk.0.attn_kv_b.weight"));
    assert_non_null(source_tensor(lite, "blk.0.attn_q.weight"));
    assert_null(source_tensor(v3, "blk.0.attn_kv_b.weight"));
    const source_tensor_t *k_b = source_tensor(v3, "blk.0.attn_k_b.weight");
    const source_tensor_t *v_b = source_tensor(v3, "blk.0.attn_v_b.weight");
    assert_true(k_b->n_dims == 3 && v_b->n_dims == 3 && k_b->rows == k_b->dims[1] * k_b->dims[2]);
    assert_non_null(source_tensor(v3, "blk.0.attn_q_a.weight"));
    for (size_t i = 0; i < source_n_tensors(v3); i++) {
        const source_tensor_t *tensor = source_tensor_at(v3, i);
        assert_ptr_equal(tensor->data, gguf_tensor(source_gguf(v3), tensor->name)->data);
        assert_int_equal(tensor->bytes, tensor->stored_bytes);
    }
    source_close(lite);
    source_close(v3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_directory_without_its_files_is_refused_by_name),
        cmocka_unit_test(test_shards_give_one_list_in_the_order_of_names),
        cmocka_unit_test(test_data_is_aligned_or_copied),
        cmocka_unit_test(test_types_that_cannot_be_used_are_refused_by_name),
        cmocka_unit_test(test_plain_directories_list_each_stored_tensor),
        cmocka_unit_test(test_transposed_experts_are_turned),
        cmocka_unit_test(test_a_view_reads_as_the_rows_of_its_tensor_quantized),
        cmocka_unit_test(test_a_view_of_values_that_do_not_fit_fails_by_row),
        cmocka_unit_test(test_both_layouts_of_deepseek2_files_open),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
