/* See draft_cost.h. */
#include "worker/engine/draft_cost.h"

/* Before anything is known: a draft model was given because somebody expects it to be right. */
#define FIRST_RATE 0.75
/* How much one guess counts, for its sequence and for all. */
#define RATE_SHARE (1.0 / 8)
#define RATE_SHARE_ALL (1.0 / 16)
/* Less is within what prices are wrong by. */
#define GAIN_MIN 1.05
/* Of the time of steps, what trials may take, and how much of it may be put by. */
#define TRIAL_SHARE (1.0 / 32)
#define TRIAL_MAX_NS 2e9
#define TRIAL_GUESSES 4u
/* The draft model's first steps tell its price, whether they pay or not: one alone may have met a busy
 * neighbour. */
#define STEPS_FIRST 8u
#define GUESSES_FIRST 2u
/* Answers that may end at any token are not expected to go on for longer. */
#define TOKENS_EXPECTED 256u

static bool is_known(const step_cost_t *cost)
{
    return cost->price[0] > 0;
}

bool draft_cost_is_learnt(const draft_cost_t *cost)
{
    return cost->n_steps == STEPS_FIRST;
}

double draft_cost_first_rate(const draft_cost_t *cost)
{
    return cost->rated ? cost->rate : FIRST_RATE;
}

void draft_cost_held(draft_cost_t *cost, double *rate, uint32_t n_guessed, uint32_t n_right)
{
    if (n_guessed == 0)
        return;
    /* What follows a wrong one tells nothing. */
    uint32_t n = n_right < n_guessed ? n_right + 1 : n_right;
    if (!cost->rated)
        cost->rate = FIRST_RATE;
    cost->rated = true;
    for (uint32_t i = 0; i < n; i++) {
        double was = i < n_right ? 1 : 0;
        *rate += (was - *rate) * RATE_SHARE;
        cost->rate += (was - cost->rate) * RATE_SHARE_ALL;
    }
}

void draft_cost_step_took(draft_cost_t *cost, uint64_t took_ns)
{
    cost->allowance_ns += (double)took_ns * TRIAL_SHARE;
    if (cost->allowance_ns > TRIAL_MAX_NS)
        cost->allowance_ns = TRIAL_MAX_NS;
}

void draft_cost_draft_took(draft_cost_t *cost, const step_work_t *work, uint64_t took_ns)
{
    step_cost_learn(&cost->step, work, took_ns);
    cost->n_steps += cost->n_steps < STEPS_FIRST;
}

/* A step in which each of those that decode has n guesses. */
static double step_with(const step_cost_t *target, const draft_case_t *c, uint32_t n)
{
    uint32_t rows = c->n_rows * (1 + n);
    if (c->fixed_rows > 0)
        return (double)c->fixed_rows + rows;
    step_work_t work = {.rows = rows, .logits = rows, .decode_keys = c->keys * (1 + n)};
    return step_cost_of(target, &work) * c->stages;
}

/* A step of the draft model for all of them. */
static double draft_step(const draft_cost_t *cost, const draft_case_t *c)
{
    if (c->fixed_rows > 0)
        return 0;
    step_work_t work = {.rows = c->n_rows, .logits = c->n_rows, .decode_keys = c->keys};
    return step_cost_of(&cost->step, &work);
}

/* The ids that the draft model has to see first. The last one belongs to the step of the first guess. */
static double catch_up(const draft_cost_t *cost, const draft_case_t *c)
{
    uint32_t n = c->behind > 1 ? c->behind - 1 : 0;
    if (n == 0 || c->fixed_rows > 0)
        return 0;
    uint64_t first = c->context - c->behind;
    step_work_t work = {.rows = n, .prompt_keys = n * first + (uint64_t)n * (n + 1) / 2};
    return step_cost_of(&cost->step, &work);
}

/* The best number of guesses for all that decode, were they all like this one; what a token of it is
 * expected to save in *saved_out. */
static uint32_t best_length(const draft_cost_t *cost, const step_cost_t *target,
                            const draft_case_t *c, double *saved_out)
{
    double without = step_with(target, c, 0), draft = draft_step(cost, c);
    double best = without / GAIN_MIN, chance = 1, tokens = 1;
    uint32_t best_n = 0;
    for (uint32_t n = 1; n <= c->max; n++) {
        chance *= c->rate;
        tokens += chance;
        double each = (step_with(target, c, n) + n * draft) / tokens;
        if (each < best) {
            best = each;
            best_n = n;
        }
    }
    *saved_out = best_n > 0 ? without - best : 0;
    return best_n;
}

static uint32_t try_some(draft_cost_t *cost, const step_cost_t *target, const draft_case_t *c)
{
    uint32_t n = c->max < TRIAL_GUESSES ? c->max : TRIAL_GUESSES;
    double price = step_with(target, c, n) - step_with(target, c, 0) +
                   n * draft_step(cost, c) + catch_up(cost, c);
    if (price > cost->allowance_ns)
        return 0;
    cost->allowance_ns -= price;
    return n;
}

uint32_t draft_cost_length(draft_cost_t *cost, const step_cost_t *target, const draft_case_t *c)
{
    double saved;
    if (c->max == 0)
        return 0;
    if (c->fixed_rows == 0 && !is_known(target))
        return 0;
    if (c->fixed_rows == 0 && !draft_cost_is_learnt(cost))
        return c->max < GUESSES_FIRST ? c->max : GUESSES_FIRST;
    uint32_t n = best_length(cost, target, c, &saved);
    uint32_t left = c->tokens_left < TOKENS_EXPECTED ? c->tokens_left : TOKENS_EXPECTED;
    /* Each of those that decode has a part of what is saved, and sees its ids itself. */
    if (n > 0 && saved * left / c->n_rows >= catch_up(cost, c))
        return n;
    return try_some(cost, target, c);
}
