/* Chat templates of Hugging Face folders: where they are found, which of several is taken, what a
 * folder without one or with a wrong one says. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/memory.h"
#include "common/model/chat.h"
#include "support.h"

static char folder[64];

static void write_file(const char *name, const char *text)
{
    char *path = mem_format("%s/%s", folder, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fputs(text, file) < 0, 0);
    assert_int_equal(fclose(file), 0);
    free(path);
}

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/shoal-chat-XXXXXX");
    return mkdtemp(folder) == NULL;
}

static int remove_folder(void **state)
{
    static const char *const names[] = {"chat_template.jinja", "chat_template.json",
                                        "tokenizer_config.json"};
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *path = mem_format("%s/%s", folder, names[i]);
        unlink(path);
        free(path);
    }
    return rmdir(folder);
}

static void assert_folder_renders(const char *name, bool with_tools, const char *wanted)
{
    chat_template_t *template = NULL;
    json_t *messages = json_array(), *tools = json_pack("[{s:s}]", "type", "function");
    chat_input_t input = {.messages = messages, .tools = with_tools ? tools : NULL};
    buffer_t text = {0};
    if (chat_template_from_folder(folder, name, &template) != STATUS_OK ||
        chat_render(template, &input, &text, NULL) != STATUS_OK)
        fail_msg("%s", status_text());
    assert_string_equal(buffer_text(&text), wanted);
    buffer_release(&text);
    chat_template_release(template);
    json_decref(messages);
    json_decref(tools);
}

static void assert_folder_fails(const char *name, status_t wanted, const char *words)
{
    chat_template_t *template = NULL;
    status_t status = chat_template_from_folder(folder, name, &template);
    if (status != wanted || strstr(status_text(), words) == NULL)
        fail_msg("ends with %s (%s)", status_name(status), status_text());
    assert_null(template);
}

static void test_the_template_of_the_tokenizer_config_is_found_with_its_tokens(void **state)
{
    (void)state;
    write_file("tokenizer_config.json",
               "{\"bos_token\": \"<s>\", \"eos_token\": {\"content\": \"</s>\", \"lstrip\": false},"
               " \"chat_template\": \"{{ bos_token }}one{{ eos_token }}\"}");
    assert_folder_renders(NULL, false, "<s>one</s>");
    assert_folder_renders("default", true, "<s>one</s>");
    assert_folder_fails("rag", STATUS_NOT_FOUND, "no chat template named \"rag\"");
}

static void test_of_several_templates_the_name_or_the_tools_choose(void **state)
{
    (void)state;
    write_file("tokenizer_config.json",
               "{\"chat_template\": [{\"name\": \"default\", \"template\": \"plain\"},"
               " {\"name\": \"tool_use\", \"template\": \"{{ tools|length }} tools\"},"
               " {\"name\": \"rag\", \"template\": \"rag\"}]}");
    assert_folder_renders(NULL, false, "plain");
    assert_folder_renders(NULL, true, "1 tools");
    assert_folder_renders("default", true, "plain");
    assert_folder_renders("rag", false, "rag");
    assert_folder_fails("other", STATUS_NOT_FOUND, "no chat template named \"other\"");
}

static void test_a_template_file_wins_over_the_config(void **state)
{
    (void)state;
    write_file("tokenizer_config.json", "{\"bos_token\": \"<s>\", \"chat_template\": \"config\"}");
    write_file("chat_template.json", "{\"chat_template\": \"processor\"}");
    assert_folder_renders(NULL, false, "processor");
    write_file("chat_template.jinja", "{{ bos_token }}file\n");
    assert_folder_renders(NULL, false, "<s>file");
}

static void test_a_folder_without_or_with_a_wrong_template_says_so(void **state)
{
    (void)state;
    assert_folder_fails(NULL, STATUS_NOT_FOUND, "has no chat template");
    write_file("tokenizer_config.json", "{\"bos_token\": null}");
    assert_folder_fails(NULL, STATUS_NOT_FOUND, "has no chat template");
    write_file("tokenizer_config.json", "{\"chat_template\": 5}");
    assert_folder_fails(NULL, STATUS_INVALID, "must be a text or a list");
    write_file("tokenizer_config.json", "{\"chat_template\": [{\"name\": \"default\"}]}");
    assert_folder_fails(NULL, STATUS_NOT_FOUND, "no chat template named \"default\"");
    write_file("tokenizer_config.json", "{\"chat_template\": \"{{\"}");
    assert_folder_fails(NULL, STATUS_INVALID, "line 1");
    write_file("tokenizer_config.json", "{\"chat_template\": ");
    assert_folder_fails(NULL, STATUS_INVALID, "tokenizer_config.json");
}

static void test_a_folder_of_the_recorded_models_renders_as_their_rows(void **state)
{
    (void)state;
    size_t n;
    char *source = support_read("chat/tiny.jinja", &n);
    json_t *config = json_pack("{s:s,s:s,s:s}", "bos_token", "<|bos|>", "eos_token", "<|eos|>",
                               "chat_template", source);
    char *text = json_dumps(config, 0);
    write_file("tokenizer_config.json", text);
    assert_folder_renders(NULL, false, "<|bos|>");
    free(text);
    json_decref(config);
    free(source);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(
            test_the_template_of_the_tokenizer_config_is_found_with_its_tokens, make_folder,
            remove_folder),
        cmocka_unit_test_setup_teardown(test_of_several_templates_the_name_or_the_tools_choose,
                                        make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_a_template_file_wins_over_the_config, make_folder,
                                        remove_folder),
        cmocka_unit_test_setup_teardown(test_a_folder_without_or_with_a_wrong_template_says_so,
                                        make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_a_folder_of_the_recorded_models_renders_as_their_rows,
                                        make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
