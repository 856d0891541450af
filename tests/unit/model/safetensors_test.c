/* The structure of safetensors files: each malformed kind is refused with its own words. The
 * numbers are those of the project's list of malformed safetensors files (S1 to S24); what needs a
 * directory (S22, S23) is in source_test.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/memory.h"
#include "common/model/safetensors.h"
#include "tests/unit/model/safetensors_draft.h"

/* One tensor's entry with its last field open. */
#define T(name, dtype, shape, offsets)                                                             \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"
#define ONE(dtype, shape, offsets) "{" T("a", dtype, shape, offsets) "}"

typedef struct {
    const char *name;
    const char *header; /* NULL: `bytes` is the whole file */
    size_t n_data;
    const char *bytes;
    size_t n_bytes;
    const char *text; /* in the failure */
} case_t;

#define BYTES(literal) .bytes = (literal), .n_bytes = sizeof(literal) - 1

static const case_t cases[] = {
    {"1 seven bytes", BYTES("\1\0\0\0\0\0\0"), .text = "7 bytes; a safetensors file begins with 8"},
    {"2 length 0", BYTES("\0\0\0\0\0\0\0\0{}"), .text = "length is 0; it must be 2 to"},
    {"3 length 2^63", BYTES("\0\0\0\0\0\0\0\x80{}"), .text = "length is 9223372036854775808; it"},
    {"4 length 100,000,001", BYTES("\1\xe1\xf5\5\0\0\0\0{}"), .text = "length is 100000001; it"},
    {"5 longer than the file", BYTES("\3\0\0\0\0\0\0\0{}"),
     .text = "is 3, but only 2 bytes follow"},
    {"6 not UTF-8", "{\"\xff\":1}", 0, .text = "is not JSON: line 1"},
    {"7 no brace", "[]", 0, .text = "does not begin with {"},
    {"7 white space first", " {}", 0, .text = "does not begin with {"},
    {"8 trailing garbage", "{} x", 0, .text = "is not JSON"},
    {"8 two documents", "{}{}", 0, .text = "is not JSON"},
    {"9 duplicate tensor", "{" T("a", "U8", "[1]", "[0,1]") "," T("a", "U8", "[1]", "[1,2]") "}", 2,
     .text = "duplicate"},
    {"9 duplicate inside", "{\"a\":{\"dtype\":\"U8\",\"dtype\":\"I8\",\"shape\":[1],"
     "\"data_offsets\":[0,1]}}", 1, .text = "duplicate"},
    {"10 begin above end", ONE("U8", "[1]", "[2,1]"), 2,
     .text = "begins at 2 and ends before, at 1"},
    {"11 end past the data", ONE("U8", "[3]", "[0,3]"), 2, .text = "ends at 3, but the file has 2"},
    {"12 hole", "{" T("a", "U8", "[1]", "[0,1]") "," T("b", "U8", "[1]", "[2,3]") "}", 3,
     .text = "tensor b: its data begins at 2 and leaves a hole"},
    {"12 hole at the start", ONE("U8", "[1]", "[1,2]"), 2, .text = "leaves a hole"},
    {"13 overlap", "{" T("a", "U8", "[2]", "[0,2]") "," T("b", "U8", "[2]", "[1,3]") "}", 3,
     .text = "tensor b: its data begins at 1 and overlaps the one before, which ends at 2"},
    {"13 twice the same", "{" T("a", "U8", "[2]", "[0,2]") "," T("b", "U8", "[2]", "[0,2]") "}", 2,
     .text = "overlaps"},
    {"14 bytes behind", ONE("U8", "[2]", "[0,2]"), 5, .text = "3 bytes behind the last tensor"},
    {"14 data of nothing", "{}", 1, .text = "1 bytes behind the last tensor"},
    {"15 shape and length", ONE("F32", "[2]", "[0,4]"), 4,
     .text = "its data has 4 bytes, its shape as F32 takes 8"},
    {"16 product overflows", ONE("F32", "[4294967296,4294967296]", "[0,0]"), 0,
     .text = "shape in bytes overflows"},
    {"16 bytes overflow", ONE("F64", "[2305843009213693952]", "[0,0]"), 0,
     .text = "shape in bytes overflows"},
    {"16 wraps to 0", ONE("U8", "[0,9223372036854775807,9223372036854775807]", "[0,0]"), 0,
     .text = NULL}, /* an empty tensor, however long its other sides */
    {"17 negative offset", ONE("U8", "[1]", "[-1,0]"), 1, .text = "data_offsets[0] is -1; it must"},
    {"17 fraction", ONE("U8", "[1]", "[0,1.5]"), 1, .text = "data_offsets[1] is of kind number"},
    {"17 exponent", ONE("U8", "[1]", "[0,1e3]"), 1, .text = "data_offsets[1] is of kind number"},
    {"17 string", ONE("U8", "[1]", "[0,\"1\"]"), 1, .text = "data_offsets[1] is of kind string"},
    {"17 2^64", ONE("U8", "[1]", "[0,18446744073709551616]"), 1, .text = "is not JSON"},
    {"17 three offsets", ONE("U8", "[1]", "[0,1,1]"), 1, .text = "has 3 values; it must be [begin"},
    {"17 negative side", ONE("U8", "[-1]", "[0,1]"), 1, .text = "shape[0] is -1; it must"},
    {"17 nine sides", ONE("U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]"), 1, .text = "has 9 dimensions"},
    {"18 unknown dtype", ONE("F4", "[1]", "[0,1]"), 1,
     .text = "dtype \"F4\" is none of the format's"},
    {"18 dtype is a number", "{\"a\":{\"dtype\":3,\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
     .text = "\"dtype\" is of kind integer"},
    {"18 no shape", "{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1,
     .text = "has no \"shape\""},
    {"18 further keys",
     "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":1}}", 1,
     .text = "further keys"},
    {"18 tensor is an array", "{\"a\":[]}", 0, .text = "tensor a is of kind array"},
    {"18 empty name", "{" T("", "U8", "[1]", "[0,1]") "}", 1, .text = "0 bytes; it must have 1 to"},
    {"18 control character", "{" T("a\\n", "U8", "[1]", "[0,1]") "}", 1,
     .text = "a control character"},
    {"19 metadata of numbers", "{\"__metadata__\":{\"format\":1}}", 0,
     .text = "__metadata__: \"format\" is of kind integer; all of it must be strings"},
    {"19 metadata is a string", "{\"__metadata__\":\"pt\"}", 0,
     .text = "__metadata__ is of kind string"},
    {"24 pickle", BYTES("\x80\2ctorch\nload\n"), .text = "this is a pickle"},
    {"24 zip", BYTES("PK\3\4\0\0\0\0\0\0\0\0"), .text = "this is a zip archive"},
};

/* Over a copy of its own length, so that a sanitizer sees a read past the end. */
static status_t open_copy(const void *bytes, size_t n)
{
    uint8_t *copy = malloc(n == 0 ? 1 : n);
    assert_non_null(copy);
    memcpy(copy, bytes, n);
    safetensors_t *file = NULL;
    status_t status = safetensors_open_bytes("case", copy, n, &file);
    assert_true((status == STATUS_OK) == (file != NULL));
    safetensors_close(file);
    free(copy);
    return status;
}

static void check_refused(const char *name, const void *bytes, size_t n, const char *text)
{
    status_t status = open_copy(bytes, n);
    if (text == NULL ? status != STATUS_OK
                     : status != STATUS_INVALID || strstr(status_text(), text) == NULL)
        fail_msg("case %s: %s \"%s\"; expected \"%s\"", name, status_name(status), status_text(),
                 text == NULL ? "OK" : text);
}

static void test_each_malformed_file_is_refused_with_its_own_words(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        buffer_t bytes = {0};
        if (cases[i].header != NULL)
            st_write_header(cases[i].header, cases[i].n_data, &bytes);
        else
            buffer_append(&bytes, cases[i].bytes, cases[i].n_bytes);
        check_refused(cases[i].name, bytes.data, bytes.size, cases[i].text);
        buffer_release(&bytes);
    }
}

/* S20 and S21: memory and stack are bounded before anything is built. */
static void test_a_million_empty_tensors_and_deep_nesting_are_refused(void **state)
{
    (void)state;
    buffer_t header = {0}, bytes = {0};
    buffer_append_text(&header, "{\"t\":0");
    for (int i = 0; i < 1000000; i++)
        buffer_format(&header, ",\"t%d\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}",
                      i);
    buffer_append_text(&header, "}");
    st_write_header(buffer_text(&header), 0, &bytes);
    check_refused("20 a million tensors", bytes.data, bytes.size,
                  "values; such a document has at most");
    buffer_clear(&header);
    buffer_clear(&bytes);
    buffer_append_text(&header, "{\"a\":");
    for (int i = 0; i < 100000; i++)
        buffer_append_text(&header, "[");
    st_write_header(buffer_text(&header), 0, &bytes);
    check_refused("21 nesting", bytes.data, bytes.size, "is nested deeper than 4 levels");
    buffer_release(&header);
    buffer_release(&bytes);
}

static void write_right_file(buffer_t *out)
{
    static const float values[6] = {1, 2, 3, 4, 5, 6};
    st_draft_t draft = {0};
    st_add_text(&draft, "\"__metadata__\":{\"format\":\"pt\"}");
    st_add(&draft, "b.weight", "F32", "[2,3]", values, sizeof values);
    st_add(&draft, "a.scalar", "F32", "[]", values, 4);
    st_add(&draft, "c.empty", "BF16", "[0,7]", NULL, 0);
    st_add(&draft, "d.scale", "F8_E8M0", "[3]", NULL, 3);
    st_write(&draft, out);
}

static void test_every_truncation_is_refused(void **state)
{
    (void)state;
    buffer_t bytes = {0};
    write_right_file(&bytes);
    for (size_t n = 0; n < bytes.size; n++)
        assert_int_equal(open_copy(bytes.data, n), STATUS_INVALID);
    assert_int_equal(open_copy(bytes.data, bytes.size), STATUS_OK);
    buffer_release(&bytes);
}

static void test_a_right_file_gives_its_tensors(void **state)
{
    (void)state;
    buffer_t bytes = {0};
    write_right_file(&bytes);
    safetensors_t *file;
    assert_int_equal(safetensors_open_bytes("right", bytes.data, bytes.size, &file), STATUS_OK);
    assert_int_equal(safetensors_n_tensors(file), 4);
    const safetensors_tensor_t *b = safetensors_find(file, "b.weight");
    assert_ptr_equal(b, safetensors_at(file, 0));
    assert_int_equal(b->dtype, SAFETENSORS_F32);
    assert_int_equal(b->n_dims, 2);
    assert_true(b->shape[0] == 2 && b->shape[1] == 3 && b->shape[2] == 1);
    assert_true(b->n_values == 6 && b->bytes == 24);
    float last;
    memcpy(&last, b->data + 20, sizeof last);
    assert_true(last == 6);
    const safetensors_tensor_t *scalar = safetensors_find(file, "a.scalar");
    assert_true(scalar->n_dims == 0 && scalar->n_values == 1 && scalar->bytes == 4);
    assert_int_equal(safetensors_find(file, "c.empty")->bytes, 0);
    assert_int_equal(safetensors_find(file, "d.scale")->bytes, 3);
    assert_null(safetensors_find(file, "__metadata__"));
    assert_null(safetensors_find(file, "z"));
    safetensors_close(file);
    buffer_release(&bytes);
}

static void test_what_is_no_regular_file_is_refused(void **state)
{
    (void)state;
    char *folder = folder_new();
    char *fifo = mem_format("%s/fifo", folder), *empty = mem_format("%s/empty", folder);
    safetensors_t *file;
    assert_int_equal(mkfifo(fifo, 0600), 0);
    folder_write_text(folder, "empty", "");
    assert_int_equal(safetensors_open(fifo, &file), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "not a regular file"));
    assert_int_equal(safetensors_open(folder, &file), STATUS_INVALID);
    assert_int_equal(safetensors_open(empty, &file), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "the file is empty"));
    assert_int_equal(unlink(empty), 0);
    assert_int_equal(safetensors_open(empty, &file), STATUS_NOT_FOUND);
    free(fifo);
    free(empty);
    folder_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_malformed_file_is_refused_with_its_own_words),
        cmocka_unit_test(test_a_million_empty_tensors_and_deep_nesting_are_refused),
        cmocka_unit_test(test_every_truncation_is_refused),
        cmocka_unit_test(test_a_right_file_gives_its_tensors),
        cmocka_unit_test(test_what_is_no_regular_file_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
