/* `shoal render` as people call it: the recorded rows through the program, a model's own
 * template, and lines that are no conversation, which get an answer each and exit code 1. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/memory.h"
#include "support.h"

static char folder[64];

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/shoal-render-XXXXXX");
    return mkdtemp(folder) == NULL;
}

static int remove_folder(void **state)
{
    static const char *const names[] = {"in", "out", "error", "tokenizer_config.json"};
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *path = mem_format("%s/%s", folder, names[i]);
        unlink(path);
        free(path);
    }
    return rmdir(folder);
}

static void write_file(const char *name, const char *text, size_t n)
{
    char *path = mem_format("%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
    free(path);
}

static char *read_file(const char *name)
{
    char *path = mem_format("%s/%s", folder, name), chunk[4096];
    FILE *file = fopen(path, "rb");
    buffer_t text = {0};
    size_t n;
    assert_non_null(file);
    buffer_append(&text, "", 0);
    while ((n = fread(chunk, 1, sizeof chunk, file)) > 0)
        buffer_append(&text, chunk, n);
    fclose(file);
    free(path);
    return (char *)text.data;
}

/* Runs `shoal render ARGUMENTS` over the text; returns its exit code. */
static int render(const char *arguments, const char *input, size_t n)
{
    write_file("in", input, n);
    char *command = mem_format("cd '%s' && env -u SHOAL_MODEL '%s/shoal' render %s "
                               "<in >out 2>error", folder, SHOAL_BIN_DIR, arguments);
    int code = system(command);
    free(command);
    assert_true(WIFEXITED(code));
    return WEXITSTATUS(code);
}

static void assert_rows(const char *name)
{
    char *path = mem_format("chat/%s.jsonl", name), *save = NULL;
    size_t n, i;
    char *input = support_read(path, &n);
    json_t *rows = support_rows(path), *row;
    char *arguments = mem_format("--template '%s/chat/%s.jinja' --jsonl", SHOAL_TEST_DATA, name);
    assert_int_equal(render(arguments, input, n), 0);
    char *output = read_file("out"), *line = strtok_r(output, "\n", &save);
    json_array_foreach(rows, i, row) {
        assert_non_null(line);
        json_t *answer = json_loads(line, JSON_ALLOW_NUL, NULL);
        const json_t *rendered = json_object_get(row, "rendered");
        const json_t *error = json_object_get(row, "error");
        assert_int_equal(json_object_size(answer), 1);
        if (rendered != NULL)
            assert_true(json_equal(rendered, json_object_get(answer, "rendered")));
        else if (strncmp(json_string_value(error), "TemplateError: ", 15) == 0)
            assert_true(json_equal(error, json_object_get(answer, "error")));
        else
            assert_non_null(json_object_get(answer, "error"));
        json_decref(answer);
        line = strtok_r(NULL, "\n", &save);
    }
    assert_null(line);
    free(output);
    free(input);
    free(arguments);
    json_decref(rows);
    free(path);
}

static void test_every_recorded_row_comes_out_of_the_program(void **state)
{
    static const char *const names[] = {"header", "inst", "smollm2", "think", "tiny"};
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        assert_rows(names[i]);
}

static void test_a_line_that_is_no_conversation_gets_an_error_and_exit_code_1(void **state)
{
    static const char input[] = "{\"messages\": []}\n\nnot json\n{\"messages\": 5}\n"
                                "{\"messages\": [], \"context\": []}\n"
                                "{\"messages\": [], \"now\": \"yesterday\"}\n"
                                "{\"messages\": [], \"context\": {\"range\": 1}}\n"
                                "{\"messages\": []}";
    (void)state;
    write_file("tokenizer_config.json", "{\"chat_template\": \"x\"}", 22);
    assert_int_equal(render("--model . --jsonl", input, sizeof input - 1), 1);
    char *output = read_file("out"), *words = read_file("error");
    assert_string_equal(strtok(output, "\n"), "{\"rendered\":\"x\"}");
    static const char *const wanted[] = {"not JSON at column", "a line must be an object like",
                                         "a line must be an object like", "now must look like",
                                         "\\\"range\\\" cannot be set"};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        const char *line = strtok(NULL, "\n");
        assert_non_null(line);
        assert_int_equal(strncmp(line, "{\"error\":\"", 10), 0);
        assert_non_null(strstr(line, wanted[i]));
    }
    assert_string_equal(strtok(NULL, "\n"), "{\"rendered\":\"x\"}");
    assert_null(strtok(NULL, "\n"));
    assert_non_null(strstr(words, "line 3: not JSON"));
    assert_non_null(strstr(words, "3 lines were wrong"));
    free(output);
    free(words);
}

static void test_a_model_brings_its_template_and_tokens(void **state)
{
    static const char row[] = "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}],"
                              " \"context\": {\"add_generation_prompt\": true}}\n";
    (void)state;
    char *arguments = mem_format("--model '%s'", support_model_path());
    assert_int_equal(render(arguments, row, sizeof row - 1), 0);
    char *output = read_file("out");
    assert_string_equal(output, "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, "
                                "trained by Hugging Face<|im_end|>\n<|im_start|>user\nHi"
                                "<|im_end|>\n<|im_start|>assistant\n");
    free(output);
    free(arguments);
    static const char config[] = "{\"bos_token\": \"<s>\", \"chat_template\": "
                                 "[{\"name\": \"default\", \"template\": \"{{ bos_token }}\"}, "
                                 "{\"name\": \"b\", \"template\": \"{{ bos_token }}{{ messages[0].content }}\"}]}";
    write_file("tokenizer_config.json", config, sizeof config - 1);
    assert_int_equal(render("--model . --template-name b", row, sizeof row - 1), 0);
    output = read_file("out");
    assert_string_equal(output, "<s>Hi");
    free(output);
}

static void test_wrong_arguments_and_missing_files_have_their_exit_codes(void **state)
{
    (void)state;
    assert_int_equal(render("--jsonl", "", 0), 2);
    assert_int_equal(render("--template none.jinja --jsonl", "", 0), 3);
    assert_int_equal(render("--model nowhere --jsonl", "", 0), 3);
    assert_int_equal(render("--model . --jsonl", "", 0), 3);
    assert_int_equal(render("--help", "", 0), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_every_recorded_row_comes_out_of_the_program,
                                        make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(
            test_a_line_that_is_no_conversation_gets_an_error_and_exit_code_1, make_folder,
            remove_folder),
        cmocka_unit_test_setup_teardown(test_a_model_brings_its_template_and_tokens, make_folder,
                                        remove_folder),
        cmocka_unit_test_setup_teardown(
            test_wrong_arguments_and_missing_files_have_their_exit_codes, make_folder,
            remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
