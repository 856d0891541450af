/* What a client asked for, checked: from a GenerateRequest or from a line of a job file, into one
 * form. Every field has a range; what is outside is refused with the field, the value and what would
 * be right, and nothing is clamped. Pure; knows no model: request_fit adds what depends on one. */
#ifndef SHOAL_COORDINATOR_REQUEST_H
#define SHOAL_COORDINATOR_REQUEST_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/memory.h"
#include "common/base/status.h"
#include "shoal/v1/inference.pb-c.h"

enum {
    REQUEST_MESSAGES_MAX = 4096,
    REQUEST_TEXT_BYTES_MAX = 4 << 20, /* prompt, or all messages together */
    REQUEST_NAME_BYTES_MAX = 128,     /* conversation, tenant, model, custom_id */
    REQUEST_STOP_MAX = 8,
    REQUEST_STOP_BYTES_MAX = 256,
    REQUEST_STOP_IDS_MAX = 64,
    REQUEST_LOGIT_BIAS_MAX = 1024,
    REQUEST_LOGPROBS_MAX = 20,
    REQUEST_CHOICES_MAX = 16,
    REQUEST_MAX_TOKENS_DEFAULT = 256,
};

typedef enum { REQUEST_PROMPT, REQUEST_CHAT, REQUEST_IDS } request_kind_t;

/* Everything lives where it was taken from or in the arena given to request_from_line, but
 * `messages`. */
typedef struct {
    request_kind_t kind;
    const char *prompt; /* REQUEST_PROMPT; UTF-8 */
    size_t prompt_bytes;
    json_t *messages;   /* REQUEST_CHAT: array of {role, content}; owned, request_release frees it */
    const uint32_t *ids; /* REQUEST_IDS */
    size_t n_ids;
    /* Every field set, defaults filled in, but the seed (has_seed) and, when it was not asked for,
     * max_tokens (request_fit). */
    Shoal__V1__Sampling sampling;
    bool has_seed;
    const char *custom_id; /* "" when absent; of lines */
    const char *model;     /* as asked for; "" when absent */
} request_t;

/* Checks input and sampling of a GenerateRequest, which must outlive the result: texts and ids are
 * not copied. */
status_t request_from_generate(const Shoal__V1__GenerateRequest *generate,
                               request_t *out) MUST_USE;

/* Checks one line of a job file: {custom_id?, prompt | messages, max_tokens?, …} or OpenAI's
 * {custom_id, method, url, body}. Fields that nobody knows are refused by name. */
status_t request_from_line(const uint8_t *bytes, size_t n, arena_t *arena, request_t *out) MUST_USE;

/* Checks what depends on the model: ids below the vocabulary, prompt + max_tokens within the context;
 * max_tokens that was not given becomes the default, cut to what is left. */
status_t request_fit(request_t *request, size_t n_prompt, uint32_t vocab, uint32_t context_max) MUST_USE;

void request_release(request_t *request);

/* Checks that a text is UTF-8 of at most bytes_max; `what` names it. For names of all kinds. */
status_t request_check_text(const char *what, const char *text, size_t bytes_max) MUST_USE;

/* For request_line.c: the range checks that both forms share. */
status_t request_check_sampling(Shoal__V1__Sampling *sampling, bool *has_seed_out) MUST_USE;

#endif
