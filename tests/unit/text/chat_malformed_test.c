/* Hostile and broken chat templates, one file each in tests/golden/chat/malformed: every one is
 * refused with the words that stand beside its name there, and leaves no text behind. */
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/model/chat.h"
#include "support.h"

static status_t render_file(const char *name, buffer_t *text)
{
    char *path = mem_format("chat/malformed/%s", name);
    size_t n;
    char *source = support_read(path, &n);
    chat_template_t *template = NULL;
    json_t *messages = json_pack("[{s:s,s:s}]", "role", "user", "content", "hi");
    chat_input_t input = {.messages = messages, .bos_token = "<s>"};
    status_t status = chat_template_create(source, n, name, &template);
    if (status == STATUS_OK)
        status = chat_render(template, &input, text, NULL);
    chat_template_release(template);
    json_decref(messages);
    free(source);
    free(path);
    return status;
}

static void test_each_malformed_template_is_refused_in_its_words(void **state)
{
    (void)state;
    json_t *rows = support_rows("chat/malformed/errors.jsonl"), *row;
    size_t i;
    json_array_foreach(rows, i, row) {
        const char *name = json_string_value(json_object_get(row, "file"));
        const char *words = json_string_value(json_object_get(row, "error"));
        buffer_t text = {0};
        status_t status = render_file(name, &text);
        if (status != STATUS_INVALID)
            fail_msg("%s ends with %s instead of INVALID", name, status_name(status));
        if (strstr(status_text(), words) == NULL)
            fail_msg("%s: \"%s\" does not say \"%s\"", name, status_text(), words);
        assert_int_equal(text.size, 0);
        buffer_release(&text);
    }
    print_message("%zu malformed templates are refused\n", i);
    assert_true(i >= 35);
    json_decref(rows);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_malformed_template_is_refused_in_its_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
