/* See step_cost.h. */
#include "worker/engine/step_cost.h"

#include <math.h>
#include <string.h>

enum { STEP, ROW, LOGITS, DECODE_KEY, PROMPT_KEY };

/* The first guess, in rows: a small model in four bits on two cores. Every machine differs, and the
 * first dozens of steps tell by how much. */
static const double guessed[STEP_COST_PARTS] = {8, 1, 0.25, 1.0 / 1024, 1.0 / 4096};

/* Steps of a kind that count; older ones fade. */
#define RECENT 64.0
/* A step may have met a busy neighbour. One that took longer than so many times what it should have
 * counts as if it had taken that: many of them still move the price. The pace follows sooner. */
#define SLOW_MAX 1.5
#define SLOW_PACE_MAX 3.0
/* How much the first guess counts for each price, in steps. With none, what a neighbour did to some
 * steps is laid upon the price that steps tell least of. */
#define GUESS_WEIGHT 0.005
/* A price stays within this factor of the first guess (all prices scaled to the machine). */
#define GUESS_RANGE 20.0

/* A prompt that joins makes steps longer by this part. Half is what running streams are promised;
 * the rest is room for what a price is wrong by. */
#define JOIN_SHARE 0.4
/* Many prompts that wait make steps longer than their shares together up to this, or a wave of them
 * would hold those who decode up for a whole step of prompts, and again, as it goes through. */
#define WAVE_NS 30e6
/* Steps with prompts that tell how far prices are off just now. Prices change over dozens of steps, and
 * a neighbour that comes or goes within a few. */
#define PACE_STEPS 8.0
/* Rows of a prompt in a step at least, or a prompt beside one stream on a machine whose steps cost
 * nothing but rows would wait for ever. */
#define PROMPT_ROWS_MIN 4.0
/* A prompt of 512 on one core takes 1 % longer in chunks of 64, 3 % in chunks of 32, 9 % of 16. */
#define PIECE_ROWS_MIN 32u
/* What a piece of a prompt costs beside its rows, at most, in rows. The price of a step is learnt from
 * steps of few rows as well, which wait for weights; many rows hide that. */
#define PIECE_FIXED_MAX 8.0

void step_cost_work(const step_plan_t *plan, step_work_t *out)
{
    *out = (step_work_t){.rows = plan->n_tokens, .logits = plan->n_logits};
    for (uint32_t i = 0; i < plan->n_entries; i++) {
        const step_entry_t *entry = &plan->entries[i];
        uint64_t n = entry->n_tokens, first = entry->position;
        uint64_t keys = n * first + n * (n + 1) / 2;
        if (entry->sample && entry->n_tokens == 1 + entry->n_draft)
            out->decode_keys += keys;
        else
            out->prompt_keys += keys;
    }
}

static void parts_of(const step_work_t *work, double x[STEP_COST_PARTS])
{
    x[STEP] = 1;
    x[ROW] = work->rows;
    x[LOGITS] = work->logits;
    x[DECODE_KEY] = (double)work->decode_keys;
    x[PROMPT_KEY] = (double)work->prompt_keys;
}

static const double *prices(const step_cost_t *cost)
{
    return cost->price[STEP] > 0 ? cost->price : guessed;
}

double step_cost_of(const step_cost_t *cost, const step_work_t *work)
{
    double x[STEP_COST_PARTS], sum = 0;
    parts_of(work, x);
    for (uint32_t i = 0; i < STEP_COST_PARTS; i++)
        sum += x[i] * prices(cost)[i];
    return sum;
}

static double pace_of(const step_cost_t *cost)
{
    return cost->pace > 0 ? cost->pace : 1;
}

/* Solves the symmetric positive definite a * x = b in place. */
static void solve(double a[STEP_COST_PARTS][STEP_COST_PARTS], double b[STEP_COST_PARTS])
{
    for (uint32_t k = 0; k < STEP_COST_PARTS; k++)
        for (uint32_t i = k + 1; i < STEP_COST_PARTS; i++) {
            double factor = a[i][k] / a[k][k];
            for (uint32_t j = k; j < STEP_COST_PARTS; j++)
                a[i][j] -= factor * a[k][j];
            b[i] -= factor * b[k];
        }
    for (uint32_t k = STEP_COST_PARTS; k-- > 0;) {
        for (uint32_t j = k + 1; j < STEP_COST_PARTS; j++)
            b[k] -= a[k][j] * b[j];
        b[k] /= a[k][k];
    }
}

/* Least squares of relative errors, drawn towards the first guess as far as steps leave it open. The
 * guess is scaled to the machine first, so what is solved for are factors near one. */
static void fit(step_cost_t *cost)
{
    double a[STEP_COST_PARTS][STEP_COST_PARTS], b[STEP_COST_PARTS];
    double on_guess = 0, guess_guess = 0;
    for (uint32_t i = 0; i < STEP_COST_PARTS; i++) {
        b[i] = (cost->seen[0].xy[i] + cost->seen[1].xy[i]) * guessed[i];
        on_guess += b[i];
        for (uint32_t j = 0; j < STEP_COST_PARTS; j++) {
            a[i][j] = (cost->seen[0].xx[i][j] + cost->seen[1].xx[i][j]) * guessed[i] * guessed[j];
            guess_guess += a[i][j];
        }
    }
    double scale = on_guess / guess_guess;
    for (uint32_t i = 0; i < STEP_COST_PARTS; i++) {
        b[i] = b[i] / scale + GUESS_WEIGHT;
        a[i][i] += GUESS_WEIGHT;
    }
    solve(a, b);
    for (uint32_t i = 0; i < STEP_COST_PARTS; i++)
        cost->price[i] = guessed[i] * scale * fmin(fmax(b[i], 1 / GUESS_RANGE), GUESS_RANGE);
}

void step_cost_learn(step_cost_t *cost, const step_work_t *work, uint64_t took_ns)
{
    double x[STEP_COST_PARTS];
    double took = took_ns > 0 ? (double)took_ns : 1;
    bool first = cost->price[STEP] <= 0;
    double expected = first ? took : step_cost_of(cost, work);
    double pace = fmin(took / expected, SLOW_PACE_MAX);
    took = fmin(took, SLOW_MAX * expected);
    parts_of(work, x);
    uint32_t kind = work->prompt_keys > 0;
    /* Only steps that somebody waited for tell the pace of such; prices follow the others, so that
     * what was off is in them after a while. */
    bool joins = kind && work->decode_keys > 0 && !first;
    cost->pace = joins ? pace_of(cost) + (pace - pace_of(cost)) / PACE_STEPS
                       : pace_of(cost) + (1 - pace_of(cost)) / RECENT;
    /* Errors count in parts of a step. By the guess and not by what is expected: a machine that has
     * become slower would count for less than what it was. */
    double size = 0;
    for (uint32_t i = 0; i < STEP_COST_PARTS; i++)
        size += x[i] * guessed[i];
    double weight = 1 / (size * size);
    for (uint32_t i = 0; i < STEP_COST_PARTS; i++) {
        double *xy = &cost->seen[kind].xy[i];
        *xy += weight * x[i] * took - *xy / RECENT;
        for (uint32_t j = 0; j < STEP_COST_PARTS; j++) {
            double *xx = &cost->seen[kind].xx[i][j];
            *xx += weight * x[i] * x[j] - *xx / RECENT;
        }
    }
    fit(cost);
}

uint32_t step_cost_fixed_rows(const step_cost_t *cost, uint64_t context)
{
    const double *price = prices(cost);
    double row = price[ROW] + price[LOGITS] + price[DECODE_KEY] * (double)context;
    double rows = price[STEP] / row + 0.5;
    return rows < 1 ? 1 : rows > 64 ? 64 : (uint32_t)rows;
}

uint32_t step_cost_prompt_rows(const step_cost_t *cost, const step_queue_t *queue)
{
    if (queue->n_decoding == 0 || queue->n_prompts == 0)
        return UINT32_MAX;
    const double *price = prices(cost);
    /* A stream's token comes once all batches have gone round, and a prompt is in one of them. */
    double n_prompts = queue->n_prompts;
    double decoding = (price[ROW] + price[LOGITS]) * queue->n_decoding +
                      price[DECODE_KEY] * (double)queue->decode_keys;
    double step = price[STEP] * queue->stages + decoding;
    double longer = step + decoding * queue->n_guesses / queue->n_decoding;
    double row = price[ROW] + price[PROMPT_KEY] * (double)queue->context;
    double shares = JOIN_SHARE * step / row * n_prompts;
    double rows = shares * n_prompts / fmin(n_prompts, queue->stages);
    if (cost->price[STEP] > 0) /* known, in nanoseconds */
        rows = fmin(rows, fmax(shares, (WAVE_NS / pace_of(cost) - longer) / row));
    rows = fmax(rows, fmax(JOIN_SHARE * longer / row, PROMPT_ROWS_MIN));
    return rows < STEP_TOKENS_MAX ? (uint32_t)rows : UINT32_MAX;
}

uint32_t step_cost_piece_rows(const step_cost_t *cost, uint64_t n_rows, uint32_t stages)
{
    if (stages < 2)
        return UINT32_MAX;
    double fixed = prices(cost)[STEP] / prices(cost)[ROW];
    fixed = fmin(fmax(fixed, 1), PIECE_FIXED_MAX);
    double best = sqrt((double)n_rows * fixed / (stages - 1));
    best = fmax(best, PIECE_ROWS_MIN);
    /* Pieces of one size: a small last one would pay a step's fixed cost for little. */
    double n_pieces = fmax(floor((double)n_rows / best), 1);
    double rows = fmax(ceil((double)n_rows / n_pieces), PIECE_ROWS_MIN);
    return rows < STEP_TOKENS_MAX ? (uint32_t)rows : UINT32_MAX;
}
