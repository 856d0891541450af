/* Guesses the next tokens of a sequence from its own earlier ones (prompt lookup): where its last
 * three ids stood before, what followed then is guessed to follow now. A step computes the guesses
 * as further rows of the sequence, and the sampler keeps those that it would have drawn itself, so a
 * guess decides how many tokens a step gives and never which.
 *
 * Whether to guess is decided by what is measured: every token that comes is held against the guess
 * for it, tried or not, so that a text that does not repeat itself costs no row, and one that begins
 * to is noticed.
 *
 * Pure and integer: the same ids give the same guesses. No allocation but in lookup_start(). */
#ifndef SHOAL_WORKER_ENGINE_LOOKUP_H
#define SHOAL_WORKER_ENGINE_LOOKUP_H

#include <stdbool.h>
#include <stdint.h>

#define DRAFT_MAX 16u   /* guesses of a sequence in one step */
#define DRAFT_ONE 65536u /* a rate of one */
#define DRAFT_LEARN_MAX 64u /* ids that one lookup_learn() catches up with */

/* Zero-initialised guesses nothing. */
typedef struct {
    uint32_t *places; /* by hash of three ids: the index after their last occurrence; 0: none */
    uint32_t mask;
    uint32_t n;      /* ids learnt */
    uint32_t source; /* index of the id that is guessed to come next; 0: no guess */
    uint32_t rate;   /* how often guesses were right lately, of DRAFT_ONE */
} lookup_t;

/* Takes memory for a sequence of at most `capacity` ids and learns the first n. */
void lookup_start(lookup_t *draft, uint32_t capacity, const uint32_t *ids, uint32_t n);
void lookup_release(lookup_t *draft);

/* n ids have come. Learns those that it did not know, the oldest DRAFT_LEARN_MAX of them; false when
 * it has not caught up yet and so cannot guess. */
bool lookup_learn(lookup_t *draft, const uint32_t *ids, uint32_t n);

/* A step of so many rows cannot gain a fifth by guesses, even if all are right; then it is better not
 * to look at every sequence's ids. */
static inline bool lookup_may_pay(uint32_t n_rows, uint32_t fixed_rows)
{
    return n_rows <= 4 * fixed_rows;
}

/* How many guesses are worth a row each in a step of n_rows rows that costs as much as fixed_rows
 * rows beside them: a further row pays while the chance that it gives a token is above its share of
 * the cost of a token without it. At most max. */
uint32_t lookup_length(const lookup_t *draft, uint32_t n_rows, uint32_t fixed_rows, uint32_t max);

/* Writes n guesses to ids[n_ids…]. There must be a guess: lookup_length() was above 0. */
void lookup_write(const lookup_t *draft, uint32_t *ids, uint32_t n_ids, uint32_t n);

#endif
