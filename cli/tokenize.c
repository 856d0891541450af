/* `shoal tokenize` and `shoal detokenize`: a model's own tokenizer over lines of standard input or
 * a file, without a cluster. A wrong line gets an answer of its own and the lines after it are
 * still done; the exit code then says that something was wrong. */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/command.h"
#include "cli/output.h"
#include "common/model/tokenizer.h"

typedef struct {
    const char *model, *format;
    bool jsonl, json, plain, add_special, skip_special;
    tokenizer_t *tokenizer;
    size_t n_wrong;
} work_t;

/* One line to the answer that is printed for it. */
typedef status_t (*line_fn)(const work_t *work, const char *line, size_t n, json_t **own_out);

static void print_answer(const work_t *work, const json_t *answer)
{
    if (work->jsonl || work->json) {
        json_dumpf(answer, stdout, JSON_COMPACT);
    } else if (json_object_get(answer, "decoded") != NULL) {
        const json_t *text = json_object_get(answer, "decoded");
        fwrite(json_string_value(text), 1, json_string_length(text), stdout);
    } else {
        size_t i;
        json_t *id;
        json_array_foreach(json_object_get(answer, "ids"), i, id)
            printf("%s%lld", i == 0 ? "" : " ", (long long)json_integer_value(id));
    }
    putchar('\n');
}

/* The value of one key of a line, of the wanted type. */
static status_t line_value(const char *line, size_t n, const char *key, json_type type,
                           const char *example, json_t **own_out)
{
    json_error_t error;
    json_t *object = json_loadb(line, n, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &error);
    if (object == NULL)
        return fail(STATUS_INVALID, "not JSON at column %d: %s", error.column, error.text);
    json_t *value = json_object_get(object, key);
    if (value == NULL || json_typeof(value) != type) {
        json_decref(object);
        return fail(STATUS_INVALID, "a line must be an object like %s", example);
    }
    *own_out = json_incref(value);
    json_decref(object);
    return STATUS_OK;
}

static void append_json_ids(json_t *list, const uint32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, json_integer(ids[i]));
}

static status_t tokenize_line(const work_t *work, const char *line, size_t n, json_t **own_out)
{
    json_t *text = NULL;
    if (work->jsonl)
        TRY(line_value(line, n, "text", JSON_STRING, "{\"text\": \"Hello\"}", &text));
    token_ids_t ids = {0};
    status_t status =
        tokenizer_encode(work->tokenizer, text == NULL ? line : json_string_value(text),
                         text == NULL ? n : json_string_length(text),
                         work->plain ? TOKENIZE_PLAIN : TOKENIZE_SPECIAL, SIZE_MAX, &ids);
    if (status == STATUS_OK) {
        json_t *list = json_array();
        size_t n_before = 0, n_behind = 0;
        const uint32_t *before = tokenizer_prefix_ids(work->tokenizer, &n_before);
        const uint32_t *behind = tokenizer_suffix_ids(work->tokenizer, &n_behind);
        append_json_ids(list, before, work->add_special ? n_before : 0);
        append_json_ids(list, ids.ids, ids.n);
        append_json_ids(list, behind, work->add_special ? n_behind : 0);
        *own_out = json_pack("{s:o}", "ids", list);
    }
    token_ids_release(&ids);
    json_decref(text);
    return status;
}

static status_t append_id(token_ids_t *ids, long long id)
{
    if (id < 0 || id >= UINT32_MAX)
        return fail(STATUS_INVALID, "ids[%zu] is %lld; ids are 0 and up", ids->n, id);
    token_ids_append(ids, (uint32_t)id);
    return STATUS_OK;
}

static status_t read_json_ids(const json_t *list, token_ids_t *ids)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *id = json_array_get(list, i);
        if (!json_is_integer(id))
            return fail(STATUS_INVALID, "ids[%zu] is not an integer", i);
        TRY(append_id(ids, json_integer_value(id)));
    }
    return STATUS_OK;
}

static status_t read_plain_ids(const char *line, token_ids_t *ids)
{
    for (const char *at = line + strspn(line, " \t,"); *at != 0; at += strspn(at, " \t,")) {
        char *end;
        errno = 0;
        long long id = strtoll(at, &end, 10);
        if (end == at || errno != 0)
            return fail(STATUS_INVALID, "\"%.20s\" is no token id", at);
        TRY(append_id(ids, id));
        at = end;
    }
    return STATUS_OK;
}

static status_t detokenize_line(const work_t *work, const char *line, size_t n, json_t **own_out)
{
    token_ids_t ids = {0};
    buffer_t text = {0};
    json_t *list = NULL;
    status_t status = work->jsonl
                          ? line_value(line, n, "ids", JSON_ARRAY, "{\"ids\": [1, 2]}", &list)
                          : read_plain_ids(line, &ids);
    if (status == STATUS_OK && list != NULL)
        status = read_json_ids(list, &ids);
    if (status == STATUS_OK)
        status = tokenizer_decode(work->tokenizer, ids.ids, ids.n, work->skip_special, &text);
    if (status == STATUS_OK)
        *own_out = json_pack("{s:o}", "decoded", json_stringn(buffer_text(&text), text.size));
    json_decref(list);
    buffer_release(&text);
    token_ids_release(&ids);
    return status;
}

static void do_lines(work_t *work, FILE *in, line_fn fn)
{
    char *line = NULL;
    size_t capacity = 0, number = 0;
    ssize_t n;
    while (!command_interrupted && (n = getline(&line, &capacity, in)) >= 0) {
        number++;
        if (n > 0 && line[n - 1] == '\n')
            line[--n] = 0;
        if (work->jsonl && line[strspn(line, " \t\r")] == 0)
            continue; /* a blank line asks nothing */
        json_t *answer = NULL;
        if (fn(work, line, (size_t)n, &answer) != STATUS_OK) {
            work->n_wrong++;
            fprintf(stderr, "line %zu: %s\n", number, status_text());
            answer = json_pack("{s:s}", "error", status_text());
            if (answer == NULL) /* the words quote bytes that are not UTF-8 */
                answer = json_pack("{s:s}", "error", "the line is not valid");
        }
        print_answer(work, answer);
        json_decref(answer);
    }
    free(line);
}

static status_t do_input(work_t *work, const char *path, line_fn fn)
{
    if (work->model == NULL)
        return fail(STATUS_INVALID, "--model is missing; give the GGUF file or the directory with "
                                    "the tokenizer");
    TRY(output_format(work->format, &work->json));
    FILE *in = path == NULL || strcmp(path, "-") == 0 ? stdin : fopen(path, "r");
    if (in == NULL)
        return fail(errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "cannot open %s: %s", path,
                    strerror(errno));
    status_t status = tokenizer_open(work->model, &work->tokenizer);
    if (status == STATUS_OK) {
        do_lines(work, in, fn);
        if (ferror(in) != 0)
            status = fail(STATUS_IO, "reading failed");
        else if (command_interrupted)
            status = fail(STATUS_CANCELLED, "interrupted");
        else if (work->n_wrong > 0)
            status = fail(STATUS_IO, "%zu lines were wrong", work->n_wrong); /* exit code 1 */
    }
    tokenizer_release(work->tokenizer);
    if (in != stdin)
        fclose(in);
    return status;
}

status_t command_tokenize(int argc, char **argv)
{
    work_t work = {0};
    const option_t options[] = {
        {"model", OPTION_TEXT, &work.model, NULL, "PATH",
         "GGUF file that carries the tokenizer, or directory with a tokenizer.json"},
        {"jsonl", OPTION_FLAG, &work.jsonl, NULL, NULL,
         "lines are {\"text\"} and become {\"ids\"}; otherwise plain text becomes numbers"},
        {"add-special", OPTION_FLAG, &work.add_special, NULL, NULL,
         "put what the model wants around a text: its beginning and end tokens"},
        {"plain", OPTION_FLAG, &work.plain, NULL, NULL,
         "special tokens that stand in the text are letters like any other"},
        OUTPUT_OPTION(&work.format),
        {0},
    };
    const options_help_t help = {
        "shoal tokenize --model PATH [--jsonl] [INPUT]",
        "Turns each line of INPUT (or standard input) into token ids. Special tokens that "
        "stand in the text\nbecome their ids. A wrong line gives {\"error\"} and exit code 1. With -o json every "
        "answer is a line\nof JSON.",
        "echo '{\"text\": \"Hello, world!\"}' | shoal tokenize --model model.gguf --jsonl",
        options};
    const char *words[1] = {NULL};
    bool done = false;
    TRY(command_options(&help, argc, argv, words, 0, 1, NULL, &done));
    return done ? STATUS_OK : do_input(&work, words[0], tokenize_line);
}

status_t command_detokenize(int argc, char **argv)
{
    work_t work = {0};
    const option_t options[] = {
        {"model", OPTION_TEXT, &work.model, NULL, "PATH",
         "GGUF file that carries the tokenizer, or directory with a tokenizer.json"},
        {"jsonl", OPTION_FLAG, &work.jsonl, NULL, NULL,
         "lines are {\"ids\"} and become {\"decoded\"}; otherwise numbers become plain text"},
        {"skip-special", OPTION_FLAG, &work.skip_special, NULL, NULL, "leave special tokens out"},
        OUTPUT_OPTION(&work.format),
        {0},
    };
    const options_help_t help = {
        "shoal detokenize --model PATH [--jsonl] [INPUT]",
        "Turns each line of INPUT (or standard input) from token ids into text. A wrong line gives "
        "{\"error\"}\nand exit code 1. With -o json every answer is a line of JSON.",
        "echo '{\"ids\": [19556, 28, 905, 17]}' | shoal detokenize --model model.gguf --jsonl",
        options};
    const char *words[1] = {NULL};
    bool done = false;
    TRY(command_options(&help, argc, argv, words, 0, 1, NULL, &done));
    return done ? STATUS_OK : do_input(&work, words[0], detokenize_line);
}
