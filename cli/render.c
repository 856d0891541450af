/* `shoal render`: what a chat template makes of messages, without a cluster. The template is a file
 * or the model's own. Each line is answered on its own; that a template refuses its messages is an
 * answer like any other, a line that is no conversation makes the exit code 1. */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "cli/command.h"
#include "cli/output.h"
#include "common/base/memory.h"
#include "common/model/chat.h"
#include "common/model/gguf.h"
#include "common/model/tokenizer.h"

typedef struct {
    const char *file, *model, *name; /* options */
    const char *format;
    bool jsonl, json, strict;
    chat_template_t *template;
    char *bos_token, *eos_token; /* of a GGUF file's tokenizer; NULL: none */
    size_t n_wrong;
} work_t;

static status_t read_whole(FILE *in, const char *name, size_t n_max, buffer_t *out)
{
    char block[16384];
    size_t n;
    while ((n = fread(block, 1, sizeof block, in)) > 0) {
        if (n > n_max - out->size)
            return fail(STATUS_INVALID, "%s has more than %zu bytes", name, n_max);
        buffer_append(out, block, n);
    }
    return ferror(in) ? fail(STATUS_IO, "reading %s failed: %s", name, strerror(errno)) : STATUS_OK;
}

static status_t open_input(const char *path, FILE **out)
{
    *out = path == NULL || strcmp(path, "-") == 0 ? stdin : fopen(path, "r");
    if (*out == NULL)
        return fail(errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "cannot open %s: %s", path,
                    strerror(errno));
    return STATUS_OK;
}

static status_t template_from_file(work_t *work)
{
    FILE *in;
    buffer_t source = {0};
    TRY(open_input(work->file, &in));
    status_t status = read_whole(in, work->file, CHAT_TEMPLATE_BYTES_MAX, &source);
    if (status == STATUS_OK)
        status = chat_template_create(buffer_text(&source), source.size, work->file,
                                      &work->template);
    buffer_release(&source);
    if (in != stdin)
        fclose(in);
    return status;
}

static char *token_text(const tokenizer_t *tokenizer, uint32_t id)
{
    size_t n;
    const uint8_t *bytes = tokenizer_bytes(tokenizer, id, &n);
    return bytes == NULL ? NULL : mem_strndup((const char *)bytes, n);
}

static status_t template_from_gguf(work_t *work)
{
    gguf_t *gguf;
    tokenizer_t *tokenizer;
    TRY(gguf_open(work->model, &gguf));
    status_t status = chat_template_from_gguf(gguf, &work->template);
    gguf_close(gguf);
    TRY(status);
    TRY(tokenizer_open(work->model, &tokenizer));
    work->bos_token = token_text(tokenizer, tokenizer_bos_id(tokenizer));
    work->eos_token = token_text(tokenizer, tokenizer_eos_id(tokenizer));
    tokenizer_release(tokenizer);
    return STATUS_OK;
}

/* --template wins: a --model may also come from the environment. */
static status_t open_template(work_t *work)
{
    struct stat info;
    if (work->file != NULL)
        return template_from_file(work);
    if (work->model == NULL)
        return fail(STATUS_INVALID, "give --template FILE or --model PATH");
    if (stat(work->model, &info) != 0)
        return fail(errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "cannot open %s: %s",
                    work->model, strerror(errno));
    return S_ISDIR(info.st_mode)
               ? chat_template_from_folder(work->model, work->name, &work->template)
               : template_from_gguf(work);
}

/* "2026-07-04T09:08:07" (a fraction or Z may follow), seconds since 1970, or nothing: this
 * moment. */
static status_t read_now(const json_t *now, int64_t *out)
{
    struct tm time_parts = {0};
    *out = (int64_t)time(NULL);
    if (now == NULL || json_is_null(now))
        return STATUS_OK;
    if (json_is_integer(now)) {
        *out = json_integer_value(now);
        return STATUS_OK;
    }
    const char *text = json_string_value(now);
    if (text == NULL || strptime(text, "%Y-%m-%dT%H:%M:%S", &time_parts) == NULL)
        return fail(STATUS_INVALID, "now must look like \"2026-07-04T09:08:07\"");
    *out = (int64_t)timegm(&time_parts);
    return STATUS_OK;
}

/* The context's text of this name, taken out of it. */
static status_t take_token(json_t *context, const char *key, json_t *own_texts, const char **inout)
{
    json_t *token = json_object_get(context, key);
    if (token == NULL)
        return STATUS_OK;
    if (!json_is_string(token) || strlen(json_string_value(token)) != json_string_length(token))
        return fail(STATUS_INVALID, "%s must be a text without NUL", key);
    json_array_append(own_texts, token);
    json_object_del(context, key);
    *inout = json_string_value(token);
    return STATUS_OK;
}

static status_t render_conversation(const work_t *work, const json_t *row, json_t *context,
                                    json_t *texts, buffer_t *out)
{
    chat_input_t input = {.messages = json_object_get(row, "messages"),
                          .tools = json_object_get(row, "tools"),
                          .extra = context,
                          .bos_token = work->bos_token,
                          .eos_token = work->eos_token,
                          .strict = work->strict};
    if (json_is_null(input.tools))
        input.tools = NULL;
    TRY(read_now(json_object_get(row, "now"), &input.now_unix_s));
    TRY(take_token(context, "bos_token", texts, &input.bos_token));
    TRY(take_token(context, "eos_token", texts, &input.eos_token));
    input.add_generation_prompt = json_is_true(json_object_get(context, "add_generation_prompt"));
    json_object_del(context, "add_generation_prompt");
    return chat_render(work->template, &input, out, NULL);
}

/* Renders one document; *wrong_out says that it is no conversation at all. */
static status_t render_document(const work_t *work, const char *text, size_t n, buffer_t *out,
                                bool *wrong_out)
{
    json_error_t error;
    *wrong_out = true;
    json_t *row = json_loadb(text, n, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &error);
    if (row == NULL)
        return fail(STATUS_INVALID, "not JSON at column %d: %s", error.column, error.text);
    const json_t *given = json_object_get(row, "context");
    status_t status = STATUS_OK;
    if (!json_is_array(json_object_get(row, "messages")) ||
        (given != NULL && !json_is_null(given) && !json_is_object(given)))
        status = fail(STATUS_INVALID, "a line must be an object like {\"messages\": [{\"role\": "
                                      "\"user\", \"content\": \"Hi\"}], \"context\": {}}");
    if (status == STATUS_OK) {
        json_t *context = json_is_object(given) ? json_copy((json_t *)(uintptr_t)given)
                                                : json_object();
        json_t *texts = json_array();
        *wrong_out = false;
        status = render_conversation(work, row, context, texts, out);
        json_decref(context);
        json_decref(texts);
    }
    json_decref(row);
    return status;
}

static void print_answer(const char *key, const char *text, size_t n)
{
    json_t *value = json_stringn(text, n);
    if (value == NULL) /* an error's words can quote bytes that are not UTF-8 */
        value = json_string("the line is not valid");
    json_t *answer = json_pack("{s:o}", key, value);
    json_dumpf(answer, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(answer);
}

static void do_lines(work_t *work, FILE *in)
{
    char *line = NULL;
    size_t capacity = 0, number = 0;
    ssize_t n;
    while (!command_interrupted && (n = getline(&line, &capacity, in)) >= 0) {
        number++;
        buffer_t text = {0};
        bool wrong;
        if (line[strspn(line, " \t\r\n")] == 0)
            continue; /* a blank line asks nothing */
        if (render_document(work, line, (size_t)n, &text, &wrong) == STATUS_OK) {
            print_answer("rendered", buffer_text(&text), text.size);
        } else {
            if (wrong)
                fprintf(stderr, "line %zu: %s\n", number, status_text());
            work->n_wrong += wrong;
            print_answer("error", status_text(), strlen(status_text()));
        }
        buffer_release(&text);
    }
    free(line);
}

/* Without --jsonl the whole input is one document, and the text is printed as it is. */
static status_t do_one(const work_t *work, FILE *in)
{
    enum { DOCUMENT_BYTES_MAX = 64 << 20 };
    buffer_t document = {0}, text = {0};
    bool wrong;
    status_t status = read_whole(in, "the input", DOCUMENT_BYTES_MAX, &document);
    if (status == STATUS_OK)
        status = render_document(work, buffer_text(&document), document.size, &text, &wrong);
    if (status == STATUS_OK && work->json)
        print_answer("rendered", buffer_text(&text), text.size);
    else if (status == STATUS_OK)
        fwrite(buffer_text(&text), 1, text.size, stdout);
    buffer_release(&document);
    buffer_release(&text);
    return status;
}

static status_t do_input(work_t *work, const char *path)
{
    FILE *in;
    TRY(output_format(work->format, &work->json));
    TRY(open_template(work));
    TRY(open_input(path, &in));
    status_t status = STATUS_OK;
    if (work->jsonl)
        do_lines(work, in);
    else
        status = do_one(work, in);
    if (status == STATUS_OK && ferror(in) != 0)
        status = fail(STATUS_IO, "reading failed");
    else if (status == STATUS_OK && command_interrupted)
        status = fail(STATUS_CANCELLED, "interrupted");
    else if (status == STATUS_OK && work->n_wrong > 0)
        status = fail(STATUS_IO, "%zu lines were wrong", work->n_wrong); /* exit code 1 */
    if (in != stdin)
        fclose(in);
    return status;
}

status_t command_render(int argc, char **argv)
{
    work_t work = {0};
    const option_t options[] = {
        {"template", OPTION_TEXT, &work.file, NULL, "FILE", "the chat template (Jinja)"},
        {"model", OPTION_TEXT, &work.model, NULL, "PATH",
         "a GGUF file or a Hugging Face folder, whose own template is taken"},
        {"template-name", OPTION_TEXT, &work.name, NULL, "NAME",
         "which of a folder's templates, where it has several"},
        {"jsonl", OPTION_FLAG, &work.jsonl, NULL, NULL,
         "each line is a conversation and becomes {\"rendered\"} or {\"error\"}"},
        {"strict", OPTION_FLAG, &work.strict, NULL, NULL,
         "printing a variable that is not defined is an error"},
        OUTPUT_OPTION(&work.format),
        {0},
    };
    const options_help_t help = {
        "shoal render --template FILE|--model PATH [--jsonl] [INPUT]",
        "Renders a chat template over conversations from INPUT or standard input, each of them\n"
        "{\"messages\": […], \"tools\": […], \"context\": {…}, \"now\": \"2026-07-04T09:08:07\"}.\n"
        "The context holds bos_token, eos_token, add_generation_prompt and the template's own\n"
        "variables. What the template refuses by raise_exception begins with \"TemplateError: \".\n"
        "Exit code 1: a line was no conversation.",
        "echo '{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}' | shoal render --model "
        "model.gguf",
        options};
    const char *words[1] = {NULL};
    bool done = false;
    TRY(command_options(&help, argc, argv, words, 0, 1, NULL, &done));
    if (done)
        return STATUS_OK;
    status_t status = do_input(&work, words[0]);
    chat_template_release(work.template);
    free(work.bos_token);
    free(work.eos_token);
    return status;
}
