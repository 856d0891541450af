/* Which bytes of a rendering may become special tokens: those that the template wrote, and none
 * that came with the request, whatever filters, methods and formats they went through. */
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/model/chat.h"
#include "support.h"

/* Renders; the marks come back as a text: t for the template's bytes, . for data. */
static void render(const char *source, size_t n, json_t *take_messages, json_t *take_tools,
                   buffer_t *text, buffer_t *marks)
{
    chat_template_t *template = NULL;
    chat_input_t input = {.messages = take_messages, .tools = take_tools, .bos_token = "<s>",
                          .eos_token = "</s>", .add_generation_prompt = true};
    assert_non_null(take_messages);
    if (chat_template_create(source, n, "test", &template) != STATUS_OK ||
        chat_render(template, &input, text, marks) != STATUS_OK)
        fail_msg("%.300s: %s", source, status_text());
    assert_int_equal(text->size, marks->size);
    for (size_t i = 0; i < marks->size; i++)
        marks->data[i] = marks->data[i] != 0 ? 't' : '.';
    chat_template_release(template);
    json_decref(take_messages);
    json_decref(take_tools);
}

static void assert_marks(const char *expression, const char *content, const char *wanted_text,
                         const char *wanted_marks)
{
    buffer_t text = {0}, marks = {0};
    char *source = mem_format("{%% set c = messages[0].content %%}%s", expression);
    render(source, strlen(source), json_pack("[{s:s,s:s}]", "role", "user", "content", content),
           NULL, &text, &marks);
    assert_string_equal(buffer_text(&text), wanted_text);
    if (strcmp(buffer_text(&marks), wanted_marks) != 0)
        fail_msg("%s marks\n%s and should\n%s", expression, buffer_text(&marks), wanted_marks);
    buffer_release(&text);
    buffer_release(&marks);
    free(source);
}

static void test_filters_keep_what_is_data_as_data(void **state)
{
    (void)state;
    assert_marks("{{ ('<' ~ c ~ '>')|title }}", "ab", "<Ab>", "t..t");
    assert_marks("{{ ('<' ~ c ~ '>')|upper }}", "\xC3\xA9\xC3\x9F", "<\xC3\x89SS>", "t....t");
    assert_marks("{{ c|capitalize ~ 'x' }}", "ab", "Abx", "..t");
    assert_marks("{{ c|center(4) }}", "ab", " ab ", "t..t");
    assert_marks("{{ c|truncate(4, true, '>>', 0) }}", "abcdef", "ab>>", "..tt");
    assert_marks("{{ 'a'|replace('a', c) ~ '<' }}", "xy", "xy<", "..t");
    assert_marks("{{ c|indent(1, true) }}", "x\ny", " x\n y", "t.tt.");
    assert_marks("{{ '<%s>'|format(c) }}", "x", "<x>", "t.t");
    assert_marks("{{ c|e ~ '<'|e }}", "<", "&lt;&lt;", "....tttt");
    assert_marks("{{ '<' + c|safe }}", "x", "&lt;x", "tttt.");
    assert_marks("{{ [c, '<']|map('upper')|join('|') }}", "x", "X|<", ".tt");
    assert_marks("{{ [c, '<']|sort|join }}", "x", "<x", "t.");
    assert_marks("{{ (c ~ '<')|reverse }}", "xy", "<yx", "t..");
    assert_marks("{{ (c ~ '<')|list|join }}", "xy", "xy<", "..t");
    assert_marks("{{ c|urlencode }}", "<", "%3C", "...");
    assert_marks("{{ [c]|batch(2, '<')|first|join }}", "x", "x<", ".t");
    assert_marks("{{ (c ~ ',\"<\"')|string|length }}", "x", "5", ".");
    assert_marks("{{ ('[\"' ~ c ~ '<\"]')|from_json|first }}", "x", "x<", "..");
    assert_marks("{{ c|tojson(indent='<') }}{{ [c]|tojson(indent='<') }}", "x",
                 "\"x\"[\n<\"x\"\n]", ".....t.....");
    assert_marks("{{ {c: '<'}|dictsort|first|join }}", "x", "x<", ".t");
}

static void test_methods_and_formats_keep_what_is_data_as_data(void **state)
{
    (void)state;
    assert_marks("{{ '<%s|%5s>' % (c, c) }}", "x", "<x|    x>", "t.ttttt.t");
    assert_marks("{{ '<{}|{:>3}>'.format(c, c) }}", "x", "<x|  x>", "t.ttt.t");
    assert_marks("{{ '{:*^5}'.format(c) }}", "x", "**x**", "tt.tt");
    assert_marks("{{ c.format('<') }}", "a{}", "a<", ".t");
    assert_marks("{{ c % '<' }}", "a%s", "a<", ".t");
    assert_marks("{{ '%r' % c }}", "x", "'x'", "...");
    assert_marks("{{ '<'.join([c, c]) }}", "x", "x<x", ".t.");
    assert_marks("{{ ('<' ~ c).partition('<')|join('|') }}", "x", "|<|x", "ttt.");
    assert_marks("{{ ('<' ~ c ~ '<').rsplit('<', 1)[0] }}", "x", "<x", "t.");
    assert_marks("{{ c.ljust(3, '<') }}{{ c.zfill(3) }}", "x", "x<<00x", ".tttt.");
    assert_marks("{{ ('<' ~ c).removeprefix('<') }}", "x", "x", ".");
    assert_marks("{{ (c ~ '<').swapcase()[1:] }}{{ (c ~ '<')[::2] }}", "xy", "Y<x<", ".t.t");
    assert_marks("{{ c.splitlines()|join('<') }}", "a\nb", "a<b", ".t.");
    assert_marks("{{ messages[0].items()|list|first|join }}", "x", "roleuser", "....tttt");
    assert_marks("{% macro m() %}<{{ caller() }}>{% endmacro %}{% call m() %}{{ c }}{% endcall %}",
                 "x", "<x>", "t.t");
    assert_marks("{% for k in [c] recursive %}<{{ k }}{{ loop([]) }}{% endfor %}", "x", "<x", "t.");
    assert_marks("{% with d = c ~ '<' %}{{ d }}{% endwith %}", "x", "x<", ".t");
    assert_marks("{% generation %}{{ c }}<{% endgeneration %}", "x", "x<", ".t");
    assert_marks("{{ strftime_now('<' ~ c) }}", "%Y", "<1970", ".....");
}

/* Every text of the conversation is this character, which no template writes. */
#define USER "\xEE\x80\x80"

static json_t *conversation(bool with_system, bool with_calls)
{
    json_t *messages = json_array();
    if (with_system)
        json_array_append_new(messages, json_pack("{s:s,s:s}", "role", "system", "content", USER));
    json_array_append_new(messages, json_pack("{s:s,s:s}", "role", "user", "content", USER));
    if (with_calls) {
        json_array_append_new(messages, json_pack(
            "{s:s,s:n,s:[{s:s,s:s,s:{s:s,s:{s:s}}}]}", "role", "assistant", "content",
            "tool_calls", "type", "function", "id", USER USER USER USER USER USER USER USER USER,
            "function", "name", USER, "arguments", USER, USER));
        json_array_append_new(messages, json_pack("{s:s,s:s,s:s}", "role", "tool", "content", USER,
                                                  "tool_call_id", USER));
    }
    json_array_append_new(messages, json_pack("{s:s,s:s,s:s}", "role", "assistant", "content", USER,
                                              "reasoning_content", USER));
    json_array_append_new(messages, json_pack("{s:s,s:s}", "role", "user", "content", USER));
    return messages;
}

static json_t *tools(void)
{
    return json_pack("[{s:s,s:{s:s,s:s,s:{s:s,s:{s:{s:s,s:s}},s:[s]}}}]", "type", "function",
                     "function", "name", USER, "description", USER, "parameters", "type", "object",
                     "properties", USER, "type", "string", "description", USER, "required", USER);
}

static void assert_no_user_byte_is_marked(const char *path, bool with_system, bool with_calls,
                                          size_t n_min)
{
    size_t n, n_found = 0;
    char *source = support_read(path, &n);
    buffer_t text = {0}, marks = {0};
    render(source, n, conversation(with_system, with_calls), with_calls ? tools() : NULL, &text,
           &marks);
    for (size_t i = 0; i + 3 <= text.size; i++)
        if (memcmp(text.data + i, USER, 3) == 0) {
            n_found++;
            if (memchr(marks.data + i, 't', 3) != NULL)
                fail_msg("%s marks a user's text at byte %zu as its own", path, i);
        }
    if (n_found < n_min)
        fail_msg("%s shows only %zu of the conversation's texts", path, n_found);
    assert_non_null(memchr(marks.data, 't', marks.size));
    buffer_release(&text);
    buffer_release(&marks);
    free(source);
}

static void test_no_template_passes_a_users_text_as_its_own(void **state)
{
    static const struct {
        const char *name;
        bool system, calls;
        size_t n_min; /* how many of the texts it shows at least */
    } cases[] = {
        {"chat/header.jinja", true, true, 7}, {"chat/inst.jinja", true, false, 4},
        {"chat/smollm2.jinja", true, false, 4}, {"chat/think.jinja", true, true, 7},
        {"chat/tiny.jinja", true, false, 4}, {"chat/styles/deepseek_r1.jinja", true, true, 7},
        {"chat/styles/documents.jinja", true, true, 7}, {"chat/styles/gemma.jinja", true, false, 4},
        {"chat/styles/harmony.jinja", true, true, 7},
        {"chat/styles/llama3_tools.jinja", true, true, 7},
        {"chat/styles/mistral_tools.jinja", true, true, 7},
        {"chat/styles/qwen3_thinking.jinja", true, true, 7},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_no_user_byte_is_marked(cases[i].name, cases[i].system, cases[i].calls,
                                      cases[i].n_min);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_filters_keep_what_is_data_as_data),
        cmocka_unit_test(test_methods_and_formats_keep_what_is_data_as_data),
        cmocka_unit_test(test_no_template_passes_a_users_text_as_its_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
