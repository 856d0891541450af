/* Which cases of the one-text product have been shown, in a file, so that a product of hours may be
 * interrupted and shared out among runs. What counts is only what the same program computed of the
 * same prompts: other lines are passed by. Several runs may add to one file at once. */
#ifndef SHOAL_TESTS_ENGINE_ONE_TEXT_LOG_H
#define SHOAL_TESTS_ENGINE_ONE_TEXT_LOG_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

enum { ONE_TEXT_CASES_MAX = 1536, ONE_TEXT_NAME_MAX = 64 };

typedef struct {
    const char *path; /* NULL: nothing is kept */
    uint64_t key;     /* of the program, the model's name, the prompts and how many ids follow */
    uint64_t hash;    /* of the last rows and greedy ids; 0 until a case was run */
    uint64_t rows;    /* of all rows; 0 until a case that computes them was run */
    uint32_t n_shown;
    char shown[ONE_TEXT_CASES_MAX][ONE_TEXT_NAME_MAX];
} one_text_log_t;

/* Reads what $SHOAL_ONE_TEXT_LOG has of this program, model and prompts. */
void one_text_log_open(one_text_log_t *log, const char *model, const json_t *ids, uint32_t greedy);
bool one_text_log_has(const one_text_log_t *log, const char *name);
/* A case that was run: fails the test when its bytes are not those of the others. rows 0: it did
 * not compute all rows. */
void one_text_log_add(one_text_log_t *log, const char *name, uint64_t hash, uint64_t rows);

#endif
