/* The structure of GGUF files: each way of being wrong is one file on disk, opened as a model is,
 * with the status and the words that it must get. The numbers are those of the list of malformed
 * inputs; what needs an architecture is in model_config_test.c. */
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
#include "tests/unit/model/gguf_cases.h"
#include "tests/unit/model/gguf_draft.h"

static void g1(draft_t *d, buffer_t *out) { (void)d; buffer_clear(out); }
static void g2(draft_t *d, buffer_t *out) { (void)d; buffer_append(out, "GGU", 3); }
static void g3(draft_t *d) { memcpy(d->magic, "FUGG", 4); }
static void g4(draft_t *d) { d->version = 0; }
static void g5(draft_t *d) { d->version = 1; }
static void g6(draft_t *d) { d->version = 4; }
static void g7(draft_t *d) { d->version = 3u << 24; }
static void g8(draft_t *d) { d->n_tensors_claimed = UINT64_MAX - 1; }
static void g8b(draft_t *d) { d->n_tensors_claimed = 200000; }
static void g9(draft_t *d) { d->n_keys_claimed = UINT64_MAX - 1; }
static void g10(draft_t *d) { d->n_keys_claimed = 60000; }
static void g11(draft_t *d) { d->keys[0].name_size = UINT64_MAX; }
static void g11b(draft_t *d) { d->keys[0].name_size = 65000; }
static void g12(draft_t *d) { d->keys[0].name[0] = 0; d->keys[0].name_size = 0; }

static void g13_nul(draft_t *d, buffer_t *out)
{
    draft_write(d, out);
    out->data[24 + 8 + 3] = 0; /* inside the first key's name */
}

static void g13_utf8(draft_t *d) { d->keys[0].name[3] = (char)0xff; }
/* U+D800 as three bytes: well formed to a careless decoder. */
static void g13_surrogate(draft_t *d) { memcpy(d->keys[0].name, "\xed\xa0\x80", 3); }
static void g13_overlong(draft_t *d) { memcpy(d->keys[0].name, "\xc0\xaf", 2); }
static void g14(draft_t *d) { draft_key(d, "llama.block_count")->kind = 13; }
static void g14_element(draft_t *d) { draft_set_array_head(d, "general.tags", 77, 0); }

static void g15(draft_t *d)
{
    draft_put_u32(&draft_add_key(d, "llama.block_count", GGUF_U32)->payload, 1);
}

static void g16(draft_t *d)
{
    draft_set_array_head(d, "general.tags", GGUF_ARRAY, 1);
    for (int depth = 0; depth < 1000; depth++) {
        draft_put_u32(&draft_key(d, "general.tags")->payload, GGUF_ARRAY);
        draft_put_u64(&draft_key(d, "general.tags")->payload, 1);
    }
}

static void g17(draft_t *d) { draft_set_array_head(d, "general.tags", GGUF_U64, 1ull << 61); }
static void g18(draft_t *d) { draft_set_array_head(d, "general.tags", GGUF_TEXT, 1ull << 32); }
static void g19_zero(draft_t *d) { draft_set_u32(d, "general.alignment", 0); }
static void g19_13(draft_t *d) { draft_set_u32(d, "general.alignment", 13); }
static void g19_huge(draft_t *d) { draft_set_u32(d, "general.alignment", 1u << 31); }
static void g20_kind(draft_t *d) { draft_set_i32(d, "general.alignment", 32); }

static void g20_twice(draft_t *d)
{
    draft_put_u32(&draft_add_key(d, "general.alignment", GGUF_U32)->payload, 32);
    draft_put_u32(&draft_add_key(d, "general.alignment", GGUF_U32)->payload, 64);
}

static void g21(draft_t *d)
{
    draft_tensor_t *tensor = draft_tensor(d, "blk.0.attn_q.weight");
    memset(tensor->name, 'a', 64);
    tensor->name[64] = 0;
    tensor->name_size = 64;
}

static void g21_empty(draft_t *d)
{
    draft_tensor(d, "blk.0.attn_q.weight")->name_size = 0;
}

static void g22(draft_t *d)
{
    draft_add_tensor(d, "output_norm.weight", QTYPE_F32, 32, 1);
}

static void n_dims(draft_t *d, uint32_t n)
{
    draft_tensor_t *tensor = draft_tensor(d, "output_norm.weight");
    tensor->n_dims = n;
    tensor->bytes = 128;
}
static void g23_zero(draft_t *d) { n_dims(d, 0); }
static void g23_five(draft_t *d) { n_dims(d, 5); }
static void g23_huge(draft_t *d) { n_dims(d, UINT32_MAX); }

static void dims(draft_t *d, uint32_t type, uint64_t columns, uint64_t rows)
{
    draft_tensor_t *tensor = draft_tensor(d, "blk.0.attn_q.weight");
    tensor->bytes = 576;
    tensor->type = type;
    tensor->dims[0] = columns;
    tensor->dims[1] = rows;
}
static void g24(draft_t *d) { dims(d, QTYPE_Q4_0, 32, (uint64_t)-32); }
static void g25(draft_t *d) { dims(d, QTYPE_Q4_0, 32, 0); }
static void g26(draft_t *d) { dims(d, QTYPE_F16, 1ull << 32, 1ull << 32); }
/* 2^31 rows of 2^31 values of 8 bytes are 2^65 bytes, which wrap to 0. */
static void g27(draft_t *d) { dims(d, QTYPE_I64, 1ull << 31, 1ull << 31); }

/* Each size is right for its type, and their sum wraps a 64-bit counter. */
static void g28(draft_t *d)
{
    dims(d, QTYPE_I8, 0x7FFFFFFFFFFFFFC0, 1);
    draft_tensor_t *tensor = draft_tensor(d, "blk.0.attn_k.weight");
    *tensor = *draft_tensor(d, "blk.0.attn_q.weight");
    snprintf(tensor->name, sizeof tensor->name, "blk.0.attn_k.weight");
    tensor->offset = 0x7FFFFFFFFFFFFFC0;
}

static void g29(draft_t *d) { dims(d, QTYPE_Q4_0, 33, 32); }
static void g30_unknown(draft_t *d) { dims(d, 99, 32, 32); }
static void g30_removed(draft_t *d) { dims(d, 4, 32, 32); }
static void g30_negative(draft_t *d) { dims(d, UINT32_MAX, 32, 32); }
static void g30_own(draft_t *d) { dims(d, QTYPE_F8S, 32, 32); }

static void offset(draft_t *d, uint64_t value)
{
    draft_tensor(d, "output_norm.weight")->offset = value;
}
static void g31(draft_t *d) { offset(d, draft_tensor(d, "output_norm.weight")->dims[0] + 1); }
static void g32(draft_t *d) { offset(d, 1u << 20); }
static void g33(draft_t *d) { offset(d, 0); }
static void g34(draft_t *d) { offset(d, UINT64_MAX - 31); }

static void g35(draft_t *d, buffer_t *out)
{
    draft_write(d, out);
    out->size--;
}

static void bad_bool(draft_t *d)
{
    draft_key(d, "tokenizer.ggml.add_bos_token")->payload.data[0] = 2;
}

static const gguf_case_t cases[] = {
    {"1 empty file", .bytes = g1, .text = "the file is empty"},
    {"2 three bytes", .bytes = g2, .text = "ends inside the magic"},
    {"3 bad magic", g3, .text = "the magic is 46 55 47 47"},
    {"4 version 0", g4, .text = "version 0 is not read"},
    {"5 version 1", g5, .text = "version 1 is not read"},
    {"6 future version", g6, .text = "version 4 is not read"},
    {"7 byte-swapped version", g7, .text = "byte-swapped"},
    {"8 2^64-2 tensors", g8, .text = "tensors; at most 262144"},
    {"8b more tensors than fit", g8b, .text = "says 200000 tensors, but"},
    {"9 2^64-2 keys", g9, .text = "keys; at most 65536"},
    {"10 more keys than fit", g10, .text = "says 60000 keys, but"},
    {"11 key of 2^64-1 bytes", g11, .text = "a key at byte 24 has 18446744073709551615 bytes"},
    {"11b key longer than the file", g11b, .text = "ends inside a key"},
    {"12 empty key", g12, .text = "has 0 bytes; 1 to 65535"},
    {"13 key with NUL", .bytes = g13_nul, .text = "not UTF-8 without NUL"},
    {"13b key not UTF-8", g13_utf8, .text = "not UTF-8 without NUL"},
    {"13c key with a surrogate", g13_surrogate, .text = "not UTF-8 without NUL"},
    {"13d key with an overlong form", g13_overlong, .text = "not UTF-8 without NUL"},
    {"14 unknown kind", g14, .text = "unknown value kind 13"},
    {"14b unknown element kind", g14_element, .text = "unknown element kind 77"},
    {"15 duplicate key", g15, .text = "key llama.block_count appears twice"},
    {"16 arrays nested 1000 deep", g16, .text = "array of arrays"},
    {"17 array size overflows", g17, .text = "2305843009213693952 elements"},
    {"18 2^32 empty texts", g18, .text = "4294967296 elements of at least 8 bytes"},
    {"19 alignment 0", g19_zero, .text = "general.alignment is 0;"},
    {"19b alignment 13", g19_13, .text = "general.alignment is 13;"},
    {"19c alignment 2^31", g19_huge, .text = "general.alignment is 2147483648;"},
    {"20 alignment as I32", g20_kind, .text = "general.alignment is I32; U32"},
    {"20b alignment twice", g20_twice, .text = "general.alignment appears twice"},
    {"21 tensor name of 64 bytes", g21, .text = "has 64 bytes; 1 to 63"},
    {"21b tensor name of 0 bytes", g21_empty, .text = "has 0 bytes; 1 to 63"},
    {"22 duplicate tensor", g22, .text = "tensor output_norm.weight appears twice"},
    {"23 no dimensions", g23_zero, .text = "has 0 dimensions; 1 to 4"},
    {"23b five dimensions", g23_five, .text = "has 5 dimensions"},
    {"23c 2^32-1 dimensions", g23_huge, .text = "has 4294967295 dimensions"},
    {"24 negative dimension", g24, .text = "dimension 1 is -32; it must be above 0"},
    {"25 zero dimension", g25, .text = "dimension 1 is 0; it must be above 0"},
    {"26 product overflows", g26, .text = "product of its dimensions overflows"},
    {"27 bytes overflow", g27, .text = "its size in bytes overflows"},
    {"28 sizes whose sum wraps", g28, .text = "reach past the end"},
    {"29 row of no whole blocks", g29, .text = "33 values are not whole Q4_0 blocks"},
    {"30 unknown type", g30_unknown, .text = "has no type 99"},
    {"30b removed type", g30_removed, .text = "has no type 4"},
    {"30c type -1", g30_negative, .text = "has no type -1"},
    {"30d a type of our own", g30_own, .text = "has no type 1001"},
    {"31 offset not aligned", g31, .text = "no multiple of the alignment 32"},
    {"32 offset past the end", g32, .text = "offset 1048576 and 128 bytes reach past"},
    {"33 overlapping tensors", g33, .text = "token_embd.weight and output_norm.weight over"},
    {"34 offset and size wrap", g34, .text = "reach past the end"},
    {"35 cut by one byte", .bytes = g35, .text = "reach past the end"},
    {"a BOOL of 2", bad_bool, .text = "a BOOL is 2"},
};

static void test_each_malformed_structure_is_refused_with_its_own_words(void **state)
{
    (void)state;
    gguf_cases_run(cases, sizeof cases / sizeof *cases);
}

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
        cmocka_unit_test(test_each_malformed_structure_is_refused_with_its_own_words),
        cmocka_unit_test(test_every_truncation_is_refused),
        cmocka_unit_test(test_what_is_no_regular_file_is_refused),
        cmocka_unit_test(test_a_link_that_leads_out_of_the_model_folder_is_refused),
        cmocka_unit_test(test_a_right_file_gives_its_keys_and_tensors),
        cmocka_unit_test(test_a_typed_read_says_absent_kind_and_range_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
