/* The ways of computing a text that the one-text tests go through: seven dimensions, each with its
 * values. What else a case does follows from its places, so that no dimension has to be added. */
#ifndef SHOAL_TESTS_ENGINE_ONE_TEXT_WAYS_H
#define SHOAL_TESTS_ENGINE_ONE_TEXT_WAYS_H

#include "eval_run.h"

enum { WAY_DIMENSIONS = 7, WAY_VALUES_MAX = 6 };
enum { TP, STAGES, THREADS, BATCH, CHUNK, WARM, ISA };

/* The place of each dimension's value. */
typedef struct {
    uint8_t at[WAY_DIMENSIONS];
} way_t;

/* The next of all ways; false after the last one. */
bool way_next(way_t *way, const uint32_t n_values[WAY_DIMENSIONS]);
/* What the program is told of a way; a warm one computes last rows only, twice. The model, the
 * prompts, how many ids follow and the level are the caller's. */
eval_args_t way_args(const way_t *way, const uint32_t values[][WAY_VALUES_MAX]);
/* Runs it. What is called warm has to have been warm, and equal numbers have to be numbers.
 * rows_out: of all rows; 0 when they were not computed. */
void way_run(const eval_args_t *args, uint64_t *hash_out, uint64_t *rows_out);

/* Prompts of many lengths, some of which begin alike. To be released. */
json_t *way_prompts(uint32_t n, uint32_t vocab, uint32_t longest);

#endif
