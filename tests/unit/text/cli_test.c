/* `shoal tokenize` and `detokenize` as people call them: the recorded rows through the program, and
 * wrong lines, which get an answer each and exit code 1. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/memory.h"
#include "support.h"

/* A file in a directory of this test's own; released by end(). */
typedef struct {
    char dir[64];
    char *in, *out, *error;
} files_t;

static files_t begin(const char *input, size_t n)
{
    files_t files = {.dir = "/tmp/shoal-cli-XXXXXX"};
    assert_non_null(mkdtemp(files.dir));
    files.in = mem_format("%s/in", files.dir);
    files.out = mem_format("%s/out", files.dir);
    files.error = mem_format("%s/error", files.dir);
    FILE *file = fopen(files.in, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(input, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
    return files;
}

static void end(files_t *files)
{
    unlink(files->in);
    unlink(files->out);
    unlink(files->error);
    rmdir(files->dir);
    free(files->in);
    free(files->out);
    free(files->error);
}

/* Runs `shoal ARGUMENTS` with the files as its streams; returns its exit code. SHOAL_MODEL,
 * which the program takes for --model, is for this test and not for the program. */
static int shoal(const files_t *files, const char *arguments)
{
    char *command = mem_format("env -u SHOAL_MODEL '%s/shoal' %s <'%s' >'%s' 2>'%s'", SHOAL_BIN_DIR,
                               arguments, files->in, files->out, files->error);
    int code = system(command);
    free(command);
    assert_true(WIFEXITED(code));
    return WEXITSTATUS(code);
}

static char *read_all(const char *path, size_t *n_out)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    buffer_t text = {0};
    char chunk[4096];
    size_t n;
    buffer_append(&text, "", 0);
    while ((n = fread(chunk, 1, sizeof chunk, file)) > 0)
        buffer_append(&text, chunk, n);
    fclose(file);
    *n_out = text.size;
    return (char *)text.data;
}

static json_t *output_rows(const files_t *files)
{
    size_t n;
    char *text = read_all(files->out, &n), *save = NULL;
    json_t *rows = json_array();
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        json_t *row = json_loads(line, JSON_ALLOW_NUL, NULL);
        assert_non_null(row);
        json_array_append_new(rows, row);
    }
    free(text);
    return rows;
}

/* Sends one key of each recorded row and compares another key of each answer. */
static void assert_rows(const char *fixture, const char *command, const char *send,
                        const char *expect)
{
    json_t *rows = support_rows(fixture), *row;
    buffer_t input = {0};
    size_t i;
    json_array_foreach(rows, i, row) {
        json_t *line = json_pack("{s:O}", send, json_object_get(row, send));
        char *text = json_dumps(line, JSON_COMPACT);
        buffer_append_text(&input, text);
        buffer_append_text(&input, "\n");
        free(text);
        json_decref(line);
    }
    files_t files = begin(buffer_text(&input), input.size);
    char *arguments = mem_format("%s --model '%s' --jsonl", command, support_model_path());
    assert_int_equal(shoal(&files, arguments), 0);
    json_t *answers = output_rows(&files);
    assert_int_equal(json_array_size(answers), json_array_size(rows));
    json_array_foreach(rows, i, row)
        if (!json_equal(json_object_get(row, expect),
                        json_object_get(json_array_get(answers, i), expect)))
            fail_msg("row %zu of %s differs", i, fixture);
    json_decref(answers);
    json_decref(rows);
    free(arguments);
    buffer_release(&input);
    end(&files);
}

static void test_the_program_tokenizes_every_recorded_row(void **state)
{
    (void)state;
    assert_rows("tokenizers/smollm2/encode.jsonl", "tokenize", "text", "ids");
    assert_rows("tokenizers/smollm2/encode.jsonl", "detokenize", "ids", "decoded");
    assert_rows("tokenizers/smollm2/decode.jsonl", "detokenize", "ids", "decoded");
}

static void assert_answers(const char *command, const char *input, int code, const char *wanted)
{
    files_t files = begin(input, strlen(input));
    char *arguments = mem_format("%s --model '%s'", command, support_model_path());
    assert_int_equal(shoal(&files, arguments), code);
    size_t n;
    char *out = read_all(files.out, &n);
    if (strstr(out, wanted) == NULL)
        fail_msg("%s answers\n%s\nwhich lacks\n%s", command, out, wanted);
    free(out);
    free(arguments);
    end(&files);
}

static void test_a_wrong_line_is_answered_and_the_rest_is_done(void **state)
{
    (void)state;
    assert_answers("tokenize --jsonl", "{\"text\": \n{\"text\":\"Hello, world!\"}\n", 1,
                   "\n{\"ids\":[19556,28,905,17]}\n");
    assert_answers("tokenize --jsonl", "{\"text\": 3}\n", 1, "{\"error\":\"a line must be");
    assert_answers("tokenize --jsonl", "{\"text\":\"\\ud800\"}\n", 1, "{\"error\":");
    assert_answers("detokenize --jsonl", "{\"ids\":[49152]}\n{\"ids\":[28]}", 1,
                   "\n{\"decoded\":\",\"}\n");
    assert_answers("detokenize --jsonl", "{\"ids\":[-1]}\n", 1, "{\"error\":\"ids[0] is -1");
    assert_answers("detokenize --jsonl", "{\"ids\":[1.5]}\n", 1, "{\"error\":\"ids[0] is not");
    assert_answers("tokenize", "Hello, world!\n", 0, "19556 28 905 17\n");
    assert_answers("detokenize", "19556 28, 905 17\n", 0, "Hello, world!\n");
    assert_answers("tokenize --plain", "<|im_end|>\n", 0, " ");
    assert_answers("tokenize", "<|im_end|>\n", 0, "2\n");
    assert_answers("detokenize --skip-special", "57 2 57\n", 0, "II\n");
}

static void test_usage_errors_have_their_exit_codes(void **state)
{
    (void)state;
    files_t files = begin("", 0);
    assert_int_equal(shoal(&files, "tokenize --jsonl"), 2);
    assert_int_equal(shoal(&files, "tokenize --model /nonexistent.gguf"), 3);
    assert_int_equal(shoal(&files, "tokenize --nonsense"), 2);
    assert_int_equal(shoal(&files, "detokenize --help"), 0);
    size_t n;
    char *out = read_all(files.out, &n);
    assert_non_null(strstr(out, "Example:"));
    free(out);
    end(&files);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_program_tokenizes_every_recorded_row),
        cmocka_unit_test(test_a_wrong_line_is_answered_and_the_rest_is_done),
        cmocka_unit_test(test_usage_errors_have_their_exit_codes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
