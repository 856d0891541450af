/* The language of chat templates, row by row: small templates whose text, or failure, was
 * recorded from jinja2 as transformers configures it (chat_oracle.py --record). Every row that
 * differs is shown. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/base/memory.h"
#include "common/model/chat.h"
#include "support.h"

static int64_t unix_time(const char *text)
{
    struct tm tm = {0};
    assert_non_null(strptime(text, "%Y-%m-%dT%H:%M:%S", &tm));
    return timegm(&tm);
}

static status_t render_row(const json_t *row, buffer_t *text, buffer_t *marks)
{
    const json_t *source = json_object_get(row, "template"), *tools = json_object_get(row, "tools");
    chat_template_t *template = NULL;
    chat_input_t input = {
        .messages = json_object_get(row, "messages"),
        .tools = json_is_null(tools) ? NULL : tools,
        .extra = json_object_get(row, "context"),
        .now_unix_s = unix_time(json_string_value(json_object_get(row, "now"))),
    };
    TRY(chat_template_create(json_string_value(source), json_string_length(source), "row",
                             &template));
    status_t status = chat_render(template, &input, text, marks);
    chat_template_release(template);
    return status;
}

/* 1 when the row is as recorded, else 0 and what differs is printed. */
static size_t is_equal(const json_t *row)
{
    const json_t *wanted = json_object_get(row, "rendered"), *error = json_object_get(row, "error");
    const char *source = json_string_value(json_object_get(row, "template"));
    buffer_t text = {0}, marks = {0};
    status_t status = render_row(row, &text, &marks);
    bool equal = wanted != NULL
                     ? status == STATUS_OK && text.size == json_string_length(wanted) &&
                           memcmp(buffer_text(&text), json_string_value(wanted), text.size) == 0
                     : status == STATUS_INVALID;
    if (equal && error != NULL && strncmp(json_string_value(error), "TemplateError", 13) == 0)
        equal = strcmp(status_text(), json_string_value(error)) == 0;
    if (!equal)
        print_error("%s\n  gives  %s\n  wanted %s\n", source,
                    status == STATUS_OK ? buffer_text(&text) : status_text(),
                    json_string_value(wanted != NULL ? wanted : error));
    assert_int_equal(text.size, marks.size);
    buffer_release(&text);
    buffer_release(&marks);
    return equal;
}

static void test_every_recorded_snippet_renders_or_fails_as_in_jinja2(void **state)
{
    (void)state;
    json_t *rows = support_rows("chat/snippets.jsonl"), *row;
    size_t i, n_equal = 0, n_errors = 0;
    json_array_foreach(rows, i, row) {
        n_equal += is_equal(row);
        n_errors += json_object_get(row, "error") != NULL;
    }
    print_message("%zu of %zu rows are equal (%zu of them errors)\n", n_equal, i, n_errors);
    assert_true(i >= 400);
    assert_int_equal(n_equal, i);
    json_decref(rows);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_recorded_snippet_renders_or_fails_as_in_jinja2),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
