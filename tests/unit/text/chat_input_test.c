/* Hostile and wrong chat templates and messages: each ends with an error that names what is wrong,
 * within its budgets; and the language of harmless ones. */
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/model/chat.h"
#include "support.h"

static status_t render_input(const char *source, const chat_input_t *input, buffer_t *text,
                             buffer_t *marks)
{
    chat_template_t *template = NULL;
    status_t status = chat_template_create(source, strlen(source), "test", &template);
    if (status != STATUS_OK)
        return status;
    status = chat_render(template, input, text, marks);
    chat_template_release(template);
    return status;
}

static status_t render(const char *source, const char *messages, buffer_t *text)
{
    json_t *json = json_loads(messages, 0, NULL);
    assert_non_null(json);
    chat_input_t input = {.messages = json, .bos_token = "<s>", .now_unix_s = 0};
    status_t status = render_input(source, &input, text, NULL);
    json_decref(json);
    return status;
}

static void assert_renders(const char *source, const char *wanted)
{
    buffer_t text = {0};
    if (render(source, "[{\"role\":\"user\",\"content\":\"hi\"}]", &text) != STATUS_OK)
        fail_msg("%s\nfails: %s", source, status_text());
    if (strcmp(buffer_text(&text), wanted) != 0)
        fail_msg("%s\nrenders \"%s\" and should \"%s\"", source, buffer_text(&text), wanted);
    buffer_release(&text);
}

static void assert_fails(const char *source, const char *words)
{
    buffer_t text = {0};
    status_t status = render(source, "[{\"role\":\"user\",\"content\":\"hi\"}]", &text);
    if (status != STATUS_INVALID)
        fail_msg("%.200s\nends with %s instead of INVALID", source, status_name(status));
    if (strstr(status_text(), words) == NULL)
        fail_msg("%.200s\nthe error \"%s\" does not say \"%s\"", source, status_text(), words);
    assert_int_equal(text.size, 0);
    buffer_release(&text);
}

/* `n` copies of `part` between `before` and `after`. */
static char *repeated(const char *before, const char *part, size_t n, const char *after)
{
    buffer_t text = {0};
    buffer_append_text(&text, before);
    for (size_t i = 0; i < n; i++)
        buffer_append_text(&text, part);
    buffer_append_text(&text, after);
    return (char *)text.data;
}

static void test_no_attribute_leads_out_of_the_sandbox(void **state)
{
    (void)state;
    assert_fails("{{ ''.__class__.__mro__ }}", "__class__");
    assert_fails("{{ ''.__class__ }}", "not accessible");
    assert_fails("{{ cycler.__init__.__globals__ }}", "__init__");
    assert_fails("{{ ''|attr('__cl'~'ass__') }}", "\"__class__\" is not accessible");
    assert_fails("{{ messages|map(attribute='__class__.__mro__')|list }}", "not accessible");
    assert_fails("{{ '{0.__class__}'.format('') }}", "not accessible");
    assert_fails("{{ ''['__class__'] }}", "not accessible");
    assert_fails("{{ messages[0].__class__ }}", "not accessible");
    assert_fails("{{ ''.encode() }}", "no method \"encode\"");
    assert_fails("{{ messages[0].update({'role': 'x'}) }}", "no method \"update\"");
    assert_fails("{{ messages.append(1) }}", "no method \"append\"");
    assert_fails("{{ messages|map(attribute='__class__')|list }}", "not accessible");
    assert_fails("{% include 'x' %}", "expected if, for, set");
    assert_fails("{% import 'x' as y %}", "expected if, for, set");
    assert_fails("{% extends 'x' %}", "expected if, for, set");
}

static void test_endless_work_runs_into_a_budget(void **state)
{
    (void)state;
    assert_fails("{% for i in range(10**9) %}{% endfor %}", "a range has at most 100000");
    assert_fails("{% set r = range(10**4) %}{% for i in r %}{% for j in r %}{% endfor %}"
                 "{% endfor %}", "takes more than");
    assert_fails("{% set x = 'a'*10**9 %}", "needs more than");
    assert_fails("{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}"
                 "{% set ns.x = ns.x + ns.x %}{% endfor %}", "needs more than");
    assert_fails("{% for i in range(100) %}{{ 'aaaaaaaaaa'*100000 }}{% endfor %}",
                 "the text has more than");
    assert_fails("{{ ('a'*1000000).replace('a', 'b'*1000) }}", "more than");
    assert_fails("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "calls itself");
    assert_fails("{{ '%*d' % (10**9, 1) }}", "needs more than");
    assert_fails("{{ '%999999999d' % 1 }}", "needs more than");
    assert_fails("{{ '{:>999999999}'.format(1) }}", "needs more than");
    assert_fails("{{ 'x'.ljust(10**12) }}", "needs more than");
    assert_fails("{{ 'x'.zfill(10**18) }}", "needs more than");
    assert_fails("{{ [1]|tojson(indent=10**12) }}", "needs more than");
    assert_fails("{{ 'x'|indent(10**12) }}", "needs more than");
    assert_fails("{{ []|slice(10**12)|list }}", "more than");
    assert_fails("{{ [1]|batch(10**12, 'x')|list }}", "more than");
    assert_fails("{% macro m() %}{% set c = caller %}{% call m() %}x{% endcall %}{% endmacro %}"
                 "{{ m() }}", "calls itself");
    assert_fails("{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}", "calls itself");
    assert_fails("{{ 9223372036854775807 + 1 }}", "leaves 64 bits");
    assert_fails("{{ 2**64 }}", "leaves 64 bits");
    assert_fails("{{ 1 // 0 }}", "division by zero");
    assert_fails("{{ 1 % 0 }}", "division by zero");
    assert_fails("{% set ns = namespace() %}{% set ns.n = ns %}{{ ns == ns }}{{ ns.n }}",
                 "nested deeper than");
}

static void test_a_malformed_template_is_refused_with_its_line(void **state)
{
    (void)state;
    assert_fails("a\n{{ x", "line 2: the tag is not closed by }}");
    assert_fails("{% if x", "the tag is not closed by %}");
    assert_fails("\n\n{% if x %}abc", "line 3: the block that begins here has no elif");
    assert_fails("{{ 'abc }}", "line 1: the text that starts with ' is not closed");
    assert_fails("{# abc", "the comment is not closed");
    assert_fails("{% raw %}abc", "raw is not closed");
    assert_fails("{% endif %}", "found \"endif\"");
    assert_fails("{{ 1 + }}", "expected an expression, found }}");
    assert_fails("{{ }}", "expected an expression");
    assert_fails("{{ a b }}", "expected }}, found \"b\"");
    assert_fails("{{ x|nosuch }}", "no filter is named \"nosuch\"");
    assert_fails("{{ x is nosuch }}", "no test is named \"nosuch\"");
    assert_fails("{% break %}", "inside a for only");
    assert_fails("{{ 99999999999999999999 }}", "too large");
    assert_fails("{{ $ }}", "0x24 cannot stand");
    char *nested = repeated("", "{% if 1 %}", 20000, "");
    assert_fails(nested, "nested deeper than");
    free(nested);
    nested = repeated("{{ ", "(", 100000, "1 }}");
    assert_fails(nested, "nested deeper than");
    free(nested);
    nested = repeated("{{ 1", "+1", 100000, " }}");
    assert_fails(nested, "nested deeper than");
    free(nested);
    nested = repeated("{{ ", "((1,),", 60, " }}"); /* must not take 2^60 steps */
    assert_fails(nested, "expected ), found }}");
    free(nested);
    nested = repeated("", "a", CHAT_TEMPLATE_BYTES_MAX + 1, "");
    assert_fails(nested, "262145 bytes");
    free(nested);
    assert_fails("\xFF", "not UTF-8 at byte 0");
}

static void test_an_undefined_variable_is_empty_or_refused_when_strict(void **state)
{
    (void)state;
    assert_renders("[{{ nothing }}]", "[]");
    assert_fails("{{ nothing.more }}", "\"nothing\" is undefined");
    assert_fails("{{ messages[5].content }}", "undefined");
    json_t *messages = json_array();
    chat_input_t input = {.messages = messages, .strict = true};
    buffer_t text = {0};
    assert_int_equal(render_input("[{{ nothing }}]", &input, &text, NULL), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "\"nothing\" is undefined"));
    assert_int_equal(render_input("{{ nothing is defined }}", &input, &text, NULL), STATUS_OK);
    assert_string_equal(buffer_text(&text), "False");
    buffer_release(&text);
    json_decref(messages);
}

static void test_data_is_never_evaluated(void **state)
{
    (void)state;
    buffer_t text = {0};
    assert_int_equal(render("{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}",
                            "[{\"role\":\"{{ 7*7 }}\",\"content\":\"{% raw %}{{ 1 }}{# x #}\"}]",
                            &text), STATUS_OK);
    assert_string_equal(buffer_text(&text), "{{ 7*7 }}: {% raw %}{{ 1 }}{# x #}");
    buffer_release(&text);
}

static void test_unusual_contents_fail_or_print_as_python_does(void **state)
{
    (void)state;
    static const char *const concat = "{% for m in messages %}{{ 'x' + m.content }}{% endfor %}";
    static const char *const print = "{% for m in messages %}{{ m.content }}{% endfor %}";
    static const struct {
        const char *content, *wanted;
    } cases[] = {
        {"null", "None"}, {"12", "12"}, {"1.0", "1.0"}, {"true", "True"}, {"1e30", "1e+30"},
        {"[\"a\",{\"b\":\"it's\"}]", "['a', {'b': \"it's\"}]"}, {"0.1", "0.1"},
        {"1e-7", "1e-07"}, {"123456789.125", "123456789.125"}, {"[]", "[]"}, {"{}", "{}"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *messages = mem_format("[{\"content\":%s}]", cases[i].content);
        buffer_t text = {0};
        assert_int_equal(render(concat, messages, &text), STATUS_INVALID);
        assert_non_null(strstr(status_text(), "+ is not defined between a string and"));
        assert_int_equal(render(print, messages, &text), STATUS_OK);
        assert_string_equal(buffer_text(&text), cases[i].wanted);
        buffer_release(&text);
        free(messages);
    }
    buffer_t text = {0};
    assert_int_equal(render(print, "[1]", &text), STATUS_OK); /* an attribute that is not there */
    assert_int_equal(render(print, "{}", &text), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "messages must be an array"));
    char *deep = repeated("[", "[", 200, "");
    char *deep_closed = repeated(deep, "]", 201, "");
    assert_int_equal(render(print, deep_closed, &text), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "may nest"));
    free(deep);
    free(deep_closed);
    buffer_release(&text);
}

static void test_a_hundred_thousand_messages_render(void **state)
{
    (void)state;
    char *most = repeated("[", "{\"role\":\"user\",\"content\":\"abc\"},", 99999, "");
    char *messages = mem_format("%s{\"role\":\"user\",\"content\":\"end\"}]", most);
    size_t n;
    char *source = support_read("chat/smollm2.jinja", &n);
    buffer_t text = {0};
    if (render(source, messages, &text) != STATUS_OK)
        fail_msg("%s", status_text());
    assert_true(text.size > 3000000);
    buffer_clear(&text);
    /* Looking ahead from every message costs neither memory nor steps for those that follow. */
    if (render("{% for m in messages %}{% for n in messages[loop.index:] %}{{ n.content[0] }}"
               "{% break %}{% endfor %}{% endfor %}", messages, &text) != STATUS_OK)
        fail_msg("%s", status_text());
    assert_int_equal(text.size, 99999);
    buffer_release(&text);
    free(source);
    free(messages);
    free(most);
}

static void test_variables_of_a_request_cannot_replace_the_programs_own(void **state)
{
    (void)state;
    static const char *const names[] = {"messages", "bos_token", "eos_token", "tools",
                                        "add_generation_prompt", "raise_exception", "range"};
    json_t *messages = json_array();
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        json_t *extra = json_pack("{s:s}", names[i], "x");
        chat_input_t input = {.messages = messages, .extra = extra};
        buffer_t text = {0};
        assert_int_equal(render_input("x", &input, &text, NULL), STATUS_INVALID);
        assert_non_null(strstr(status_text(), names[i]));
        json_decref(extra);
    }
    json_t *extra = json_pack("{s:b,s:b}", "tokenize", 1, "enable_thinking", 0);
    chat_input_t input = {.messages = messages, .extra = extra};
    buffer_t text = {0};
    assert_int_equal(render_input("{{ enable_thinking }}", &input, &text, NULL), STATUS_OK);
    assert_string_equal(buffer_text(&text), "False");
    buffer_release(&text);
    json_decref(extra);
    json_decref(messages);
}

static void test_raise_exception_gives_its_words(void **state)
{
    (void)state;
    assert_fails("{{ raise_exception('roles must alternate: ' ~ 1) }}", "roles must alternate: 1");
}

/* The marks of a rendering as a text: t for the template's bytes, . for data. */
static void assert_marks(const char *source, const char *content, const char *wanted_text,
                         const char *wanted_marks)
{
    json_t *messages = json_pack("[{s:s,s:s}]", "role", "user", "content", content);
    chat_input_t input = {.messages = messages, .bos_token = "<s>"};
    buffer_t text = {0}, marks = {0};
    if (render_input(source, &input, &text, &marks) != STATUS_OK)
        fail_msg("%s: %s", source, status_text());
    assert_string_equal(buffer_text(&text), wanted_text);
    for (size_t i = 0; i < marks.size; i++)
        marks.data[i] = marks.data[i] != 0 ? 't' : '.';
    if (strcmp(buffer_text(&marks), wanted_marks) != 0)
        fail_msg("%s marks %s and should %s", source, buffer_text(&marks), wanted_marks);
    buffer_release(&text);
    buffer_release(&marks);
    json_decref(messages);
}

static void test_every_byte_of_data_stays_marked_as_data(void **state)
{
    (void)state;
#define C "messages[0].content"
    assert_marks("a{{ " C " }}b", "xy", "axyb", "t..t");
    assert_marks("{{ bos_token + " C " }}", "xy", "<s>xy", "ttt..");
    assert_marks("{{ " C "|upper|trim ~ 'q' }}", " xy ", "XYq", "..t");
    assert_marks("{{ ('<' ~ " C " ~ '>')[::-1] }}", "xy", ">yx<", "t..t");
    assert_marks("{{ '<x>'.replace('x', " C ") }}", "yy", "<yy>", "t..t");
    assert_marks("{{ " C ".replace('y', '<>') }}", "xyx", "x<>x", ".tt.");
    assert_marks("{{ ['a', " C "]|join('-') }}", "xy", "a-xy", "tt..");
    assert_marks("{{ (" C " ~ '|a').split('|')|join('') }}", "x", "xa", ".t");
    assert_marks("{{ messages|tojson }}", "x", "[{\"role\": \"user\", \"content\": \"x\"}]",
                 "..................................");
    assert_marks("{% set v %}<{{ " C " }}>{% endset %}{{ v }}", "xy", "<xy>", "t..t");
    assert_marks("{% macro m(c) %}<{{ c }}>{% endmacro %}{{ m(" C ") }}", "x", "<x>", "t.t");
    assert_marks("{% filter upper %}<{{ " C " }}>{% endfilter %}", "x", "<X>", "t.t");
    assert_marks("{{ strftime_now(" C ") }}", "<s>", "<s>", "...");
    assert_marks("{{ '<|' + messages[0]['role'] + '|>' }}", "x", "<|user|>", "tttttttt");
    assert_marks("{{ " C " * 2 }}", "x", "xx", "..");
    assert_marks("{{ [" C "] }}", "x", "['x']", ".....");
    assert_marks("{{ " C "|default('d') ~ nothing|default('d') }}", "x", "xd", ".t");
    assert_marks("{% for c in " C " %}{{ c }}-{% endfor %}", "xy", "x-y-", ".t.t");
    assert_marks("{{ ('a\\n' ~ " C ")|indent(2) }}", "x", "a\n  x", "tttt.");
#undef C
}

static void test_the_language_computes_as_jinja_does(void **state)
{
    (void)state;
    static const struct {
        const char *source, *wanted;
    } cases[] = {
        {"{{ 1 + 2 * 3 ** 2 - -4 }}", "23"},        {"{{ 7 // -2 }},{{ 7 % -2 }}", "-4,-1"},
        {"{{ 7 / 2 }},{{ 4 / 2 }}", "3.5,2.0"},     {"{{ 'a' ~ 1 ~ none }}", "a1None"},
        {"{{ 1 < 2 <= 2 != 3 }}", "True"},          {"{{ not 1 == 2 and 0 or 'x' }}", "x"},
        {"{{ 'b' in 'abc', 'z' not in 'abc' }}", "(True, True)"},
        {"{{ [1, 2, 3][1:] }}{{ [1,2,3][::-1] }}", "[2, 3][3, 2, 1]"},
        {"{{ 'h\xC3\xA9llo'[1:3] }}{{ 'h\xC3\xA9llo'|length }}", "\xC3\xA9l5"},
        {"{{ {'a': 1, 'b': {}}['a'] }}", "1"},      {"{{ 'x' if false else 'y' }}", "y"},
        {"{{ 'x' if false }}|", "|"},               {"{{ -1|abs }}{{ '4'|int + 1 }}", "15"},
        {"{% for i in range(3) if i != 1 %}{{ loop.index }}{{ i }}{{ ',' if not loop.last }}"
         "{% endfor %}", "10,22"},
        {"{% for i in [] %}x{% else %}none{% endfor %}", "none"},
        {"{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}{{ v }}{% endfor %}", "a1b2"},
        {"{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}"
         "{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}!", "013!"},
        {"{% set x = 1 %}{% for i in [2] %}{% set x = i %}{{ x }}{% endfor %}{{ x }}", "21"},
        {"{% set ns = namespace(a=1) %}{% for i in [5] %}{% set ns.a = i %}{% endfor %}{{ ns.a }}",
         "5"},
        {"{% if 1 %}{% set y = 3 %}{% endif %}{{ y }}", "3"},
        {"{% set a, b = 1, 2 %}{{ b }}{{ a }}", "21"},
        {"{% macro f(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}{{ f(1, b=3) }}", "1213"},
        {"{{ 'a,b,,c'.split(',') }}{{ ' a  b '.split() }}", "['a', 'b', '', 'c']['a', 'b']"},
        {"{{ 'a b c'.split(' ', 1) }}", "['a', 'b c']"},
        {"{{ 'xxaxx'.strip('x') }}{{ '\\u3000a '|trim }}", "aa"},
        {"{{ [{'r': 'u', 'n': 1}, {'r': 'a', 'n': 2}]|selectattr('r', 'equalto', 'a')"
         "|map(attribute='n')|list }}", "[2]"},
        {"{{ [3, 1, 2]|sort|join(',') }}{{ ['b', 'a']|sort(reverse=true)|first }}", "1,2,3b"},
        {"{{ ['a', 'b', 'a']|unique|list }}{{ [1, 2]|max }}", "['a', 'b']2"},
        {"{{ {'b': 1, 'a': [1, 'x\"']}|tojson }}", "{\"b\": 1, \"a\": [1, \"x\\\"\"]}"},
        {"{{ {'b': [], 'a': {'c': 1}}|tojson(indent=2) }}",
         "{\n  \"b\": [],\n  \"a\": {\n    \"c\": 1\n  }\n}"},
        {"{{ 3 is odd }}{{ 4 is divisibleby 2 }}{{ 'x' is not string }}", "TrueTrueFalse"},
        {"{{ messages is iterable and messages is not mapping }}", "True"},
        {"{{ 'ab'.startswith('a') and 'ab'.endswith(('x', 'b')) }}", "True"},
        {"a{%- if 1 -%} b {%- endif %} c", "ab c"},
        {"x\n  {% if 1 %}\ny\n  {% endif %}\nz", "x\ny\nz"},
        {"x {# c #}\ny", "x y"},                    {"{% raw %}{{ x }}{% endraw %}", "{{ x }}"},
        {"{{ 'a' 'b' }}\n\n", "ab\n"},              {"{{- ' x' }}  {{ 'y' -}}  z", " x  yz"},
        {"{% generation %}g{% endgeneration %}", "g"}, {"{{ 'A\\x41\\u00e9\\n' }}", "AA\xC3\xA9\n"},
        {"{{ strftime_now('%Y-%m-%d') }}", "1970-01-01"}, {"{{ 'aXb'|lower|title }}", "Axb"},
        {"{{ true and [] }}{{ none is none }}", "[]True"}, {"{{ (1,) }}{{ () }}", "(1,)()"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_renders(cases[i].source, cases[i].wanted);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_attribute_leads_out_of_the_sandbox),
        cmocka_unit_test(test_endless_work_runs_into_a_budget),
        cmocka_unit_test(test_a_malformed_template_is_refused_with_its_line),
        cmocka_unit_test(test_an_undefined_variable_is_empty_or_refused_when_strict),
        cmocka_unit_test(test_data_is_never_evaluated),
        cmocka_unit_test(test_unusual_contents_fail_or_print_as_python_does),
        cmocka_unit_test(test_a_hundred_thousand_messages_render),
        cmocka_unit_test(test_variables_of_a_request_cannot_replace_the_programs_own),
        cmocka_unit_test(test_raise_exception_gives_its_words),
        cmocka_unit_test(test_every_byte_of_data_stays_marked_as_data),
        cmocka_unit_test(test_the_language_computes_as_jinja_does),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
