/* A model's own chat template: messages to text, and text to token ids.
 *
 * The template comes with the model file and the messages from a client; both are untrusted. It
 * runs in a small Jinja interpreter that has no way out (no attributes but dictionary keys and the
 * known methods, no include or import) and is bounded in steps, memory, output and nesting.
 *
 * The text comes marked: bytes written by the template itself (and bos_token, eos_token) carry 1,
 * bytes that came from messages, tools or other values of the request carry 0. chat_encode finds
 * special tokens only in marked bytes, so a user who types "<|im_end|>" gets those letters and
 * never the control token.
 *
 * A compiled template is immutable; any number of threads may render it at once. */
#ifndef SHOAL_COMMON_MODEL_CHAT_H
#define SHOAL_COMMON_MODEL_CHAT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buffer.h"
#include "common/base/status.h"
#include "common/model/tokenizer.h"

struct gguf;

enum {
    CHAT_TEMPLATE_BYTES_MAX = 256 * 1024,
    CHAT_OUTPUT_BYTES_MAX = 16 << 20,
    CHAT_MEMORY_BYTES_MAX = 256 << 20, /* of values during one rendering */
    CHAT_STEPS_MAX = 20 * 1000 * 1000, /* expressions and statements evaluated in one rendering */
    CHAT_NESTING_MAX = 100,            /* of blocks, expressions, calls and data */
};

typedef struct chat_template chat_template_t;

/* What a rendering sees. Everything is borrowed for the call. */
typedef struct {
    const json_t *messages; /* array of objects {role, content, …}; must not be NULL */
    const json_t *tools;    /* array; NULL leaves `tools` undefined */
    const json_t *extra;    /* object: further variables (chat_template_kwargs); may be NULL. The
                               names of this struct's other fields in it are refused. */
    const char *bos_token;  /* text; NULL: the folder's own, else undefined */
    const char *eos_token;
    bool add_generation_prompt;
    bool strict;       /* printing an undefined variable is an error, not "" */
    int64_t now_unix_s; /* what strftime_now shows, in UTC */
    size_t steps_max;   /* 0, or a tighter budget than CHAT_STEPS_MAX */
} chat_input_t;

/* Compiles a template. STATUS_INVALID names line and cause. `name` stands in errors. */
status_t chat_template_create(const char *source, size_t n, const char *name,
                              chat_template_t **own_out) MUST_USE;
/* Compiles the template that a GGUF file carries; STATUS_NOT_FOUND when it carries none. */
status_t chat_template_from_gguf(const struct gguf *gguf, chat_template_t **own_out) MUST_USE;
/* Compiles the template of a Hugging Face folder: chat_template.jinja, else chat_template.json,
 * else the chat_template of tokenizer_config.json. Where that is a list of named templates,
 * `name` chooses one; NULL takes the one named "default", and "tool_use", if there is one, for
 * renderings with tools. What tokenizer_config.json calls bos_token and eos_token stands in
 * where an input has none. STATUS_NOT_FOUND when the folder has no template (or none of that
 * name): DeepSeek publishes V3.2 and V4 so, whose prompts are made by code. */
status_t chat_template_from_folder(const char *path, const char *name,
                                   chat_template_t **own_out) MUST_USE;
void chat_template_release(chat_template_t *take_template);

/* Appends the text to `text_out` and a mark for each of its bytes to `marks_out` (may be NULL). On
 * failure both are as before. What the template itself refuses by raise_exception is STATUS_INVALID
 * with the text "TemplateError: " and its words. */
status_t chat_render(const chat_template_t *template, const chat_input_t *input,
                     buffer_t *text_out, buffer_t *marks_out) MUST_USE;

/* Renders and tokenizes; bos_token and eos_token are taken from the tokenizer where the input has
 * NULL, and are empty where it has none either. Appends at most ids_max ids. */
status_t chat_encode(const chat_template_t *template, const tokenizer_t *tokenizer,
                     const chat_input_t *input, size_t ids_max, token_ids_t *out) MUST_USE;

#endif
