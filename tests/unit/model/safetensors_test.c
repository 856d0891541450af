/* The structure of safetensors files: every truncation, what is no file, and what a right one
 * gives. The malformed ones are files, see malformed_test.c. */
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

/* An empty tensor, however long its other sides: their product does not wrap. */
static void test_an_empty_tensor_may_have_any_other_sides(void **state)
{
    (void)state;
    buffer_t bytes = {0};
    st_write_header("{\"a\":{\"dtype\":\"U8\",\"shape\":[0,9223372036854775807,"
                    "9223372036854775807],\"data_offsets\":[0,0]}}", 0, &bytes);
    assert_int_equal(open_copy(bytes.data, bytes.size), STATUS_OK);
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
        cmocka_unit_test(test_an_empty_tensor_may_have_any_other_sides),
        cmocka_unit_test(test_every_truncation_is_refused),
        cmocka_unit_test(test_a_right_file_gives_its_tensors),
        cmocka_unit_test(test_what_is_no_regular_file_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
