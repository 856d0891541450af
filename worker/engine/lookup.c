/* See lookup.h. */
#include "worker/engine/lookup.h"

#include <stdlib.h>

#include "common/base/memory.h"

#define WIDTH 3u /* ids that have to agree; two guess too often, four too late */

static uint32_t *place_of(const lookup_t *draft, const uint32_t *last)
{
    uint64_t h = (uint64_t)last[0] * 0x9e3779b97f4a7c15u;
    h = (h ^ last[1]) * 0xbf58476d1ce4e5b9u;
    h = (h ^ h >> 29 ^ last[2]) * 0x94d049bb133111ebu;
    return &draft->places[(uint32_t)(h >> 32) & draft->mask];
}

void lookup_start(lookup_t *draft, uint32_t capacity, const uint32_t *ids, uint32_t n)
{
    uint32_t n_places = 64;
    while (n_places < capacity)
        n_places *= 2;
    *draft = (lookup_t){.places = MEM_NEW_ARRAY(uint32_t, n_places), .mask = n_places - 1};
    while (!lookup_learn(draft, ids, n))
        continue;
    /* How the prompt repeats itself says little about the answer: only that counts. */
    draft->rate = 0;
}

void lookup_release(lookup_t *draft)
{
    free(draft->places);
    *draft = (lookup_t){0};
}

/* A quarter of the way up, half of the way down: what ceases to be right is off at once. */
static void hold_guess_against(lookup_t *draft, uint32_t guess, uint32_t id)
{
    if (guess == id) {
        draft->rate += (DRAFT_ONE - draft->rate) / 4;
        draft->source++;
    } else {
        draft->rate -= draft->rate / 2;
        draft->source = 0;
    }
}

static void learn(lookup_t *draft, const uint32_t *ids, uint32_t n)
{
    if (draft->source)
        hold_guess_against(draft, ids[draft->source], ids[n - 1]);
    if (n < WIDTH)
        return;
    const uint32_t *last = ids + n - WIDTH;
    uint32_t *place = place_of(draft, last);
    /* A source that goes on being right is kept: it agrees in more than three ids. */
    if (!draft->source && *place) {
        const uint32_t *before = ids + *place - WIDTH;
        if (before[0] == last[0] && before[1] == last[1] && before[2] == last[2])
            draft->source = *place;
    }
    *place = n;
}

bool lookup_learn(lookup_t *draft, const uint32_t *ids, uint32_t n)
{
    for (uint32_t i = 0; i < DRAFT_LEARN_MAX && draft->n < n; i++)
        learn(draft, ids, ++draft->n);
    return draft->n == n;
}

uint32_t lookup_length(const lookup_t *draft, uint32_t n_rows, uint32_t fixed_rows, uint32_t max)
{
    uint64_t chance = draft->rate; /* that this guess and all before it are right */
    uint32_t n = 0;
    if (!draft->source)
        return 0;
    while (n < max && chance * (n_rows + fixed_rows) > (uint64_t)n_rows * DRAFT_ONE) {
        chance = chance * draft->rate / DRAFT_ONE;
        n++;
    }
    return n;
}

void lookup_write(const lookup_t *draft, uint32_t *ids, uint32_t n_ids, uint32_t n)
{
    /* A source close behind runs into what is written here, which is how a short loop goes on. */
    for (uint32_t i = 0; i < n; i++)
        ids[n_ids + i] = ids[draft->source + i];
}
