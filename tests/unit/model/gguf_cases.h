/* A table of malformed models: each is written to a file of its own and opened as a model. */
#ifndef SHOAL_TESTS_UNIT_MODEL_GGUF_CASES_H
#define SHOAL_TESTS_UNIT_MODEL_GGUF_CASES_H

#include <stddef.h>

#include "common/base/status.h"
#include "tests/unit/model/gguf_draft.h"

typedef struct {
    const char *name;
    void (*change)(draft_t *draft);                /* of a right llama; or */
    void (*bytes)(draft_t *draft, buffer_t *out);  /* the whole file */
    const char *text;                              /* what the error must say */
    status_t status;                               /* STATUS_OK here means STATUS_INVALID */
} gguf_case_t;

/* Fails the test with the names of all cases that were not refused as the table says. */
void gguf_cases_run(const gguf_case_t *cases, size_t n);

#endif
