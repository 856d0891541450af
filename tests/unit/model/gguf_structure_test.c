/* The structure of GGUF files: every truncation, what is no file, and what a right one gives. The
 * malformed ones are files, see malformed_test.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/memory.h"
#include "common/model/gguf.h"
#include "common/model/model.h"
#include "tests/unit/model/gguf_draft.h"

/* Every prefix lies in an allocation of its own length, so that reading past it is seen. */
static void test_every_truncation_is_refused(void **state)
{
    (void)state;
    draft_t *draft = draft_llama();
    buffer_t bytes = {0};
    draft_write(draft, &bytes);
    for (size_t n = 0; n < bytes.size; n++) {
        uint8_t *cut = mem_new(n, 1);
        memcpy(cut, bytes.data, n);
        gguf_t *gguf;
        assert_int_equal(gguf_open_bytes("cut", cut, n, &gguf), STATUS_INVALID);
        free(cut);
    }
    gguf_t *whole;
    assert_int_equal(gguf_open_bytes("whole", bytes.data, bytes.size, &whole), STATUS_OK);
    gguf_close(whole);
    buffer_release(&bytes);
    draft_free(draft);
}

static void test_what_is_no_regular_file_is_refused(void **state)
{
    (void)state;
    char dir[] = "/tmp/shoal-gguf-XXXXXX";
    assert_non_null(mkdtemp(dir));
    char *fifo = mem_format("%s/fifo", dir);
    assert_int_equal(mkfifo(fifo, 0600), 0);
    const char *const others[] = {fifo, dir, "/dev/zero"};
    gguf_t *gguf;
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(gguf_open(others[i], &gguf), STATUS_INVALID);
        assert_non_null(strstr(status_text(), "not a regular file"));
    }
    char *missing = mem_format("%s/missing.gguf", dir);
    assert_int_equal(gguf_open(missing, &gguf), STATUS_NOT_FOUND);
    unlink(fifo);
    rmdir(dir);
    free(missing);
    free(fifo);
}

static void test_a_link_that_leads_out_of_the_model_folder_is_refused(void **state)
{
    (void)state;
    char dir[] = "/tmp/shoal-gguf-XXXXXX";
    assert_non_null(mkdtemp(dir));
    char *models = mem_format("%s/models", dir);
    char *beside = mem_format("%s/models-beside.gguf", dir);
    char *inside = mem_format("%s/a.gguf", models);
    char *link_out = mem_format("%s/out.gguf", models);
    char *link_in = mem_format("%s/in.gguf", models);
    assert_int_equal(mkdir(models, 0700), 0);
    close(open(beside, O_CREAT | O_WRONLY, 0600));
    close(open(inside, O_CREAT | O_WRONLY, 0600));
    assert_int_equal(symlink(beside, link_out), 0);
    assert_int_equal(symlink("a.gguf", link_in), 0);
    assert_int_equal(model_check_inside(models, inside), STATUS_OK);
    assert_int_equal(model_check_inside(models, link_in), STATUS_OK);
    assert_int_equal(model_check_inside("/", inside), STATUS_OK);
    assert_int_equal(model_check_inside(models, link_out), STATUS_REFUSED);
    assert_non_null(strstr(status_text(), "outside the model folder"));
    /* A folder whose name merely begins alike is outside. */
    assert_int_equal(model_check_inside(models, beside), STATUS_REFUSED);
    assert_int_equal(model_check_inside(models, dir), STATUS_REFUSED);
    unlink(link_in), unlink(link_out), unlink(inside), unlink(beside);
    rmdir(models), rmdir(dir);
    free(link_in), free(link_out), free(inside), free(beside), free(models);
}

static void test_a_right_file_gives_its_keys_and_tensors(void **state)
{
    (void)state;
    draft_t *draft = draft_llama();
    draft->version = 2;
    draft_set_u32(draft, "general.alignment", 64);
    draft->alignment = 64;
    buffer_t bytes = {0};
    draft_write(draft, &bytes);
    gguf_t *gguf;
    assert_int_equal(gguf_open_bytes("right", bytes.data, bytes.size, &gguf), STATUS_OK);
    assert_int_equal(gguf_version(gguf), 2);
    assert_int_equal(gguf_alignment(gguf), 64);
    assert_int_equal(gguf_n_tensors(gguf), 11);
    assert_string_equal(gguf_tensor_at(gguf, 0)->name, "token_embd.weight");
    const gguf_tensor_t *q = gguf_tensor(gguf, "blk.0.attn_q.weight");
    assert_int_equal(q->bytes, 32 * 18);
    assert_int_equal(q->row_bytes, 18);
    assert_int_equal(q->offset % 64, 0);
    assert_ptr_equal(q->data, bytes.data + q->offset);
    assert_null(gguf_tensor(gguf, "blk.0.attn_q"));
    assert_null(gguf_find(gguf, "llama"));
    const gguf_value_t *tokens;
    assert_int_equal(gguf_read_array(gguf, "tokenizer.ggml.tokens", GGUF_TEXT, &tokens), STATUS_OK);
    assert_int_equal(tokens->count, 8);
    assert_true(gguf_text_is(gguf_array_text(tokens, 7), "t7"));
    const gguf_value_t *types;
    assert_int_equal(gguf_read_array(gguf, "tokenizer.ggml.token_type", GGUF_I64, &types),
                     STATUS_OK);
    assert_int_equal(gguf_array_integer(types, 3), 1);
    gguf_close(gguf);
    buffer_release(&bytes);
    draft_free(draft);
}

static void test_a_typed_read_says_absent_kind_and_range_apart(void **state)
{
    (void)state;
    draft_t *draft = draft_new();
    draft_set_i32(draft, "minus", -1);
    draft_set_u32(draft, "seven", 7);
    draft_set_f32(draft, "nan", __builtin_nanf(""));
    draft_put_u64(&draft_add_key(draft, "huge", GGUF_U64)->payload, UINT64_MAX);
    buffer_t bytes = {0};
    draft_write(draft, &bytes);
    gguf_t *gguf;
    assert_int_equal(gguf_open_bytes("keys", bytes.data, bytes.size, &gguf), STATUS_OK);
    uint32_t whole = 99;
    float real = 99;
    gguf_text_t text;
    assert_int_equal(gguf_read_u32(gguf, "none", 0, 9, &whole), STATUS_NOT_FOUND);
    assert_int_equal(gguf_read_u32(gguf, "minus", 0, 9, &whole), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "minus is -1; 0 to 9"));
    assert_int_equal(gguf_read_u32(gguf, "huge", 0, UINT32_MAX, &whole), STATUS_INVALID);
    assert_int_equal(gguf_read_u32(gguf, "seven", 0, 6, &whole), STATUS_INVALID);
    assert_int_equal(whole, 99);
    assert_int_equal(gguf_read_u32(gguf, "seven", 7, 7, &whole), STATUS_OK);
    assert_int_equal(whole, 7);
    assert_int_equal(gguf_read_f32(gguf, "nan", -1e30f, 1e30f, &real), STATUS_INVALID);
    assert_int_equal(gguf_read_f32(gguf, "seven", 0, 9, &real), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "seven is U32; F32 would be right"));
    assert_int_equal(gguf_read_text(gguf, "seven", &text), STATUS_INVALID);
    gguf_close(gguf);
    buffer_release(&bytes);
    draft_free(draft);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_truncation_is_refused),
        cmocka_unit_test(test_what_is_no_regular_file_is_refused),
        cmocka_unit_test(test_a_link_that_leads_out_of_the_model_folder_is_refused),
        cmocka_unit_test(test_a_right_file_gives_its_keys_and_tensors),
        cmocka_unit_test(test_a_typed_read_says_absent_kind_and_range_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
