/* `shoal inspect`: what a model is, before anything is deployed. A model that Shoal cannot run is
 * described as far as its files tell, and the exit code says that it cannot. */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/command.h"
#include "cli/describe.h"
#include "cli/output.h"
#include "common/base/json.h"
#include "common/base/memory.h"
#include "common/model/chat.h"
#include "common/model/footprint.h"
#include "common/model/model_outline.h"
#include "common/model/source.h"
#include "common/model/tokenizer.h"

typedef struct {
    const char *path;
    const char *cache_dir; /* NULL: digests are not kept */
    bool digest;
    json_t *report;
} work_t;

static void set_text(json_t *object, const char *key, const char *text, size_t n)
{
    json_t *value = json_stringn(text, n);
    /* What files say need not be UTF-8. */
    json_object_set_new(object, key, value != NULL ? value : json_string("(not UTF-8)"));
}

static void set_failure(json_t *object, const char *key)
{
    set_text(object, key, status_text(), strlen(status_text()));
}

/* --- tokenizer and chat template --- */

static void kind_of_gguf(const gguf_t *gguf, json_t *out)
{
    gguf_text_t text;
    if (gguf_find(gguf, "tokenizer.ggml.model") != NULL &&
        gguf_read_text(gguf, "tokenizer.ggml.model", &text) == STATUS_OK)
        set_text(out, "kind", text.data, text.size);
    if (gguf_find(gguf, "tokenizer.ggml.pre") != NULL &&
        gguf_read_text(gguf, "tokenizer.ggml.pre", &text) == STATUS_OK)
        set_text(out, "pre", text.data, text.size);
}

static void kind_of_directory(const char *path, json_t *out)
{
    char *file = mem_format("%s/tokenizer.json", path);
    json_t *object;
    if (json_read_file(file, NULL, &object) == STATUS_OK) {
        const json_t *type = json_object_get(json_object_get(object, "model"), "type");
        if (json_is_string(type))
            set_text(out, "kind", json_string_value(type), json_string_length(type));
        json_decref(object);
    }
    free(file);
}

static void describe_tokenizer(work_t *work, const gguf_t *gguf)
{
    tokenizer_t *tokenizer;
    json_t *out = json_object();
    if (gguf != NULL)
        kind_of_gguf(gguf, out);
    else
        kind_of_directory(work->path, out);
    status_t status = tokenizer_open(work->path, &tokenizer);
    if (status == STATUS_OK) {
        json_object_set_new(out, "tokens", json_integer(tokenizer_n_tokens(tokenizer)));
        tokenizer_release(tokenizer);
    } else {
        set_failure(out, status == STATUS_NOT_FOUND ? "missing" : "unusable");
    }
    json_object_set_new(work->report, "tokenizer", out);
}

static void describe_template(work_t *work, const gguf_t *gguf)
{
    chat_template_t *template;
    status_t status = gguf != NULL ? chat_template_from_gguf(gguf, &template)
                                   : chat_template_from_folder(work->path, NULL, &template);
    if (status == STATUS_OK)
        chat_template_release(template);
    if (status == STATUS_OK || status == STATUS_NOT_FOUND)
        json_object_set_new(work->report, "chat_template", json_boolean(status == STATUS_OK));
    else
        set_failure(work->report, "chat_template_unusable");
}

/* --- the model --- */

static void describe_model(work_t *work, const model_t *model)
{
    footprint_t footprint;
    footprint_of_model(model, &footprint);
    describe_config(work->report, model_config(model));
    describe_footprint(work->report, &footprint);
}

/* What files call the architecture that we do not have. */
static void describe_name(work_t *work, const source_t *source)
{
    const gguf_t *gguf = source_gguf(source);
    const json_t *type = json_object_get(source_config(source), "model_type");
    gguf_text_t text;
    if (gguf != NULL && gguf_find(gguf, "general.architecture") != NULL &&
        gguf_read_text(gguf, "general.architecture", &text) == STATUS_OK)
        set_text(work->report, "architecture", text.data, text.size);
    else if (json_is_string(type))
        set_text(work->report, "architecture", json_string_value(type), json_string_length(type));
}

/* A model that cannot run: its configuration if that can be read, and its tensors if those can. */
static void describe_rest(work_t *work)
{
    model_t *outline;
    source_t *source;
    footprint_t footprint;
    bool open = source_open(work->path, &source) == STATUS_OK;
    if (open) {
        describe_name(work, source);
        footprint_of_source(source, &footprint);
        describe_footprint(work->report, &footprint);
    }
    if ((!open || source_is_directory(source)) &&
        model_outline_open(work->path, &outline) == STATUS_OK) {
        describe_config(work->report, model_config(outline));
        if (!open)
            describe_model(work, outline);
        model_close(outline);
    }
    if (open) {
        describe_tokenizer(work, source_gguf(source));
        describe_template(work, source_gguf(source));
        source_close(source);
    }
}

static status_t inspect_outline(work_t *work)
{
    model_t *model;
    json_object_set_new(work->report, "format", json_string("config.json alone"));
    status_t status = model_outline_open(work->path, &model);
    if (status == STATUS_OK) {
        describe_model(work, model);
        model_close(model);
    }
    return status;
}

static status_t inspect_model(work_t *work)
{
    model_t *model;
    struct stat info;
    if (stat(work->path, &info) != 0)
        return fail(errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "%s: cannot open: %s",
                    work->path, strerror(errno));
    if (model_outline_only(work->path))
        return inspect_outline(work);
    json_object_set_new(work->report, "format",
                        json_string(S_ISDIR(info.st_mode) ? "Hugging Face directory" : "GGUF"));
    status_t status = model_open(work->path, &model);
    if (status != STATUS_OK) {
        char *why = mem_strdup(status_text());
        describe_rest(work);
        status = fail(status, "%s", why);
        free(why);
        return status;
    }
    describe_model(work, model);
    describe_tokenizer(work, model_gguf(model));
    describe_template(work, model_gguf(model));
    model_close(model);
    if (work->digest) {
        char digest[MODEL_DIGEST_SIZE];
        TRY(model_digest(work->path, work->cache_dir, digest));
        json_object_set_new(work->report, "digest", json_string(digest));
    }
    return STATUS_OK;
}

/* --- lines --- */

static const char *text_of(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

static void print_tokenizer(const json_t *tokenizer)
{
    if (tokenizer == NULL)
        return;
    const char *kind = text_of(tokenizer, "kind"), *pre = text_of(tokenizer, "pre");
    const char *wrong = text_of(tokenizer, "unusable");
    if (text_of(tokenizer, "missing") != NULL)
        describe_line("tokenizer", "none");
    else
        describe_line("tokenizer", "%s%s%s, %lld tokens%s%s", kind != NULL ? kind : "unknown",
                      pre != NULL ? "/" : "", pre != NULL ? pre : "",
                      (long long)json_integer_value(json_object_get(tokenizer, "tokens")),
                      wrong != NULL ? "; unusable: " : "", wrong != NULL ? wrong : "");
}

static void print_report(const json_t *report)
{
    static const char *const type_columns[] = {"type", "tensors", "values", "bytes",
                                               "bits_per_value"};
    static const char *const cache_columns[] = {"cache", "layers", "bytes_per_token_and_layer",
                                                "window", "positions_per_entry", "indexed"};
    const json_t *template = json_object_get(report, "chat_template");
    const char *wrong = text_of(report, "chat_template_unusable");
    const char *why = text_of(report, "why_not");
    describe_line("format", "%s", text_of(report, "format"));
    describe_print(report);
    print_tokenizer(json_object_get(report, "tokenizer"));
    if (wrong != NULL)
        describe_line("chat template", "unusable: %s", wrong);
    else if (template != NULL)
        describe_line("chat template", "%s", json_is_true(template) ? "yes" : "no");
    if (text_of(report, "digest") != NULL)
        describe_line("digest", "%s", text_of(report, "digest"));
    describe_line("supported", "%s%s", why == NULL ? "yes" : "no: ", why == NULL ? "" : why);
    if (json_array_size(json_object_get(report, "types")) > 0) {
        putchar('\n');
        output_table(type_columns, sizeof type_columns / sizeof *type_columns,
                     json_object_get(report, "types"));
    }
    if (json_array_size(json_object_get(report, "caches")) > 0) {
        putchar('\n');
        output_table(cache_columns, sizeof cache_columns / sizeof *cache_columns,
                     json_object_get(report, "caches"));
    }
}

status_t command_inspect(int argc, char **argv)
{
    const char *format, *words[1];
    work_t work = {0};
    const option_t options[] = {
        {"digest", OPTION_FLAG, &work.digest, NULL, NULL,
         "show the digest that deployments name, which reads every byte once"},
        {"digest-cache", OPTION_TEXT, &work.cache_dir, NULL, "DIR",
         "folder where digests are kept, such as a worker's --data: a file that did not change is "
         "not read again"},
        OUTPUT_OPTION(&format),
        {0},
    };
    const options_help_t help = {
        "shoal inspect PATH [options]",
        "Describes a model: a GGUF file, a Hugging Face directory, or a config.json without\n"
        "weights. A model that Shoal cannot run is described as far as it goes; the exit code is\n"
        "then 4 (not supported) or 2 (the files contradict themselves).",
        "shoal inspect models/SmolLM2-135M-Instruct.Q4_1.gguf", options};
    bool done = false, json = false;
    TRY(command_options(&help, argc, argv, words, 1, 1, NULL, &done));
    if (done)
        return STATUS_OK;
    TRY(output_format(format, &json));
    work.path = words[0];
    work.report = json_object();
    set_text(work.report, "path", words[0], strlen(words[0]));
    status_t status = inspect_model(&work);
    bool described = json_object_get(work.report, "format") != NULL;
    if (status != STATUS_OK)
        set_failure(work.report, "why_not");
    json_object_set_new(work.report, "supported", json_boolean(status == STATUS_OK));
    if (described && json)
        output_json(work.report, false);
    else if (described)
        print_report(work.report);
    json_decref(work.report);
    return status;
}
