/* What the scheduler's files share: scheduler.c (life, ends and results), scheduler_queues.c (who
 * may start next, whose time is over), scheduler_streams.c (what coordinators ask for and are owed),
 * scheduler_plan.c (what runs next), scheduler_prompts.c (of that, the prompts), scheduler_pools.c
 * (blocks), scheduler_draft.c (what a draft model is asked). */
#ifndef SHOAL_WORKER_ENGINE_SCHEDULER_INTERNAL_H
#define SHOAL_WORKER_ENGINE_SCHEDULER_INTERNAL_H

#include <stddef.h>

#include "common/base/heap.h"
#include "common/model/plan.h"
#include "worker/engine/lookup.h"
#include "worker/engine/draft_cost.h"
#include "worker/engine/kv.h"
#include "worker/engine/scheduler.h"

#define SLOT_NONE UINT32_MAX
#define STAGES_MAX 64u
#define SCHEDULER_LOOKS_MAX 16u /* waiting sequences looked at while one plan is made */
#define SCHEDULER_PRIORITY_MAX 100 /* what coordinators take is from minus this on */
#define SCHEDULER_PRIORITIES (2u * SCHEDULER_PRIORITY_MAX + 1)

typedef enum { SEQUENCE_WAITING, SEQUENCE_RUNNING, SEQUENCE_ENDED } sequence_state_t;

/* One (request, choice). `ids` never moves: plans and outputs point into it. Behind the ids that
 * are known stand the guesses of the step in flight. */
typedef struct sequence {
    /* What every step of it looks at, together: see scheduler_fetch(). */
    sequence_state_t state;
    bool solo;
    bool dirty;                        /* in its stream's list of what is owed */
    uint32_t n_prompt, n_given, n_ids; /* n_given: produced ids that came with the admission */
    uint32_t max_tokens;
    uint32_t n_computed;  /* tokens whose KV planned steps have written */
    uint32_t n_blocks, n_published; /* of those, blocks offered to later prompts */
    uint32_t n_behind; /* of n_blocks the first ones, which were given back */
    uint32_t n_told;      /* of its blocks, those that plans have named */
    uint32_t n_in_flight; /* 0 or 1, but pieces of its prompt may be in several flights */
    uint32_t slot;
    uint32_t pool;        /* of its blocks, while it runs; of the last ones otherwise */
    uint32_t tenant;      /* index into the tenants */
    int32_t priority;
    uint32_t logits_next; /* eval: next position whose logits are owed */
    uint32_t stream;      /* attached, 0 when nobody is */
    uint64_t planned;     /* the round in whose plan it stands */
    uint32_t *ids;        /* prompt, then produced; room for n_prompt + max_tokens */
    uint32_t *blocks;     /* room for n_prompt + max_tokens */
    sampled_t *drawn; /* of produced ids after the given ones; NULL without logprobs */
    uint32_t n_stop_ids, *stop_ids;
    lookup_t draft;
    double draft_rate;         /* how often a draft model was right of it lately; 0: not known */
    uint32_t n_drafted_known;  /* its ids that the draft model has seen */
    uint32_t drafted_at;       /* n_ids when it was asked last */
    uint32_t n_drafted, drafted[DRAFT_MAX]; /* what it answered */
    uint64_t serial; /* order of arrival; the lowest running one is never preempted */
    kv_link_t link;

    char session[SESSION_BYTES];
    uint32_t choice;
    uint64_t owner;
    sampling_t sampling;
    uint64_t deadline_at_ms; /* UINT64_MAX is none */
    uint32_t namespace_id;
    uint32_t n_cached; /* prompt tokens found in the cache at the first start */
    bool started;      /* ran at least once: a later start is a return after preemption */
    uint32_t passed;   /* by smaller ones, while blocks were too few for it */
    bool refused;      /* did not fit when some pool had this room at most: */
    int64_t refused_room;
    heap_place_t waiting_place, solo_place; /* among those that may start */
    heap_place_t due_place;                 /* among those that time will change */

    uint32_t sent; /* produced ids that the stream has */
    bool end_owed; /* the stream was not sent the end yet */
    struct sequence *dirty_next, *dirty_before;
    uint64_t detached_at_ms;

    end_reason_t end;
    finish_t finish;
    const char *error_code;
    const char *error; /* NULL is ""; a text that outlives the sequence */
    uint64_t ended_at_ms;
    bool settled; /* ended, nobody is owed anything of it, and no step points to it */
    struct sequence *settled_next, *settled_before;

    struct sequence *hash_next, *all_next, *all_before;
} sequence_t;

/* An end that belongs to no sequence of the stream: refused or superseded. */
typedef struct notice {
    struct notice *next;
    char session[SESSION_BYTES];
    uint32_t choice;
    uint64_t owner;
    end_reason_t end;
    const char *error_code;
    char error[STATUS_TEXT_MAX];
} notice_t;

typedef struct {
    bool open;
    bool overrun; /* SCHEDULER_NOTICES_MAX were not read: it is to be closed */
    uint32_t n_notices;
    notice_t *notices, *notices_last;
    sequence_t *dirty, *dirty_last;
    uint64_t committed_tokens;
} stream_t;

typedef struct {
    char *name;
    uint64_t served;  /* tokens computed for it */
    uint32_t n_live;  /* sequences that have not ended */
    heap_t waiting;  /* its sequences that may start: priority, returns first, arrival */
    uint32_t active;  /* 1-based place among the tenants with such; 0: it has none */
} tenant_t;

/* A batch between scheduler_plan and scheduler_step_done. */
typedef struct {
    uint64_t step;
    bool alone; /* solo, or eval's rows of logits: nothing else may be in flight */
    step_work_t work;
    uint64_t took_ns; /* of the slowest rank that told; 0: none */
    uint32_t n;
    struct flown {
        sequence_t *sequence;
        uint32_t slot; /* at the time: an ended sequence has none */
        uint32_t n_samples_max; /* tokens that it may give: 0, or 1 and one for each guess */
        uint32_t n_drafted;     /* of the guesses, those of a draft model: all or none */
    } * entries;
} flight_t;

/* Blocks of one replica of attention, and the sequences that run on it. */
typedef struct {
    kv_t *kv;
    uint32_t n_running;
} kv_pool_t;

struct scheduler {
    scheduler_config_t config;
    kv_pool_t pools[PLAN_TP_MAX];
    bool lost;
    uint64_t now_ms;
    uint64_t serial;

    sequence_t *all, *all_last; /* every known one, oldest arrival first */
    uint32_t n_known;
    sequence_t **table; /* hash of (session, choice) */
    uint32_t table_mask;
    sequence_t **running; /* ascending serial */
    uint32_t n_running, running_max;
    uint32_t n_waiting, n_refused; /* refused: of those who wait, lacked blocks at their last try */
    struct {
        uint32_t n, n_refused;
    } waiting_by[SCHEDULER_PRIORITIES]; /* the same of each priority, lowest first */
    sequence_t **prompts; /* of the plan in work: those that run and have more than one row to come */
    uint64_t waiting_rows; /* of their prompts */
    uint32_t n_solo; /* of those that have not ended */
    heap_t solo;    /* those of them that may start */
    heap_t due;     /* by the time at which a deadline passes or it is forgotten */
    sequence_t *settled, *settled_last; /* longest settled first */
    uint32_t n_settled;
    sequence_t *slots[STEP_SLOTS_MAX];
    uint32_t n_slots_free, slots_free[STEP_SLOTS_MAX]; /* a stack */
    /* Slots of ended sequences of which the last stage was not told yet; they are free already. */
    uint32_t n_closing, closing[STEP_SLOTS_MAX];
    uint64_t tokens_committed; /* prompt + max_tokens of all that have not ended, as far as they
                                  hold them at once */

    tenant_t tenants[SCHEDULER_TENANTS_MAX];
    uint32_t n_tenants;
    uint32_t n_active, active[SCHEDULER_TENANTS_MAX]; /* tenants with sequences that may start */
    stream_t streams[SCHEDULER_STREAMS_MAX + 1]; /* by number; 0 is nobody */
    uint32_t n_streams;

    flight_t flights[STAGES_MAX + 1]; /* a batch for each stage, and a piece ahead of them */
    uint32_t flight_first, n_flights;
    bool solo_ran_last;
    uint32_t rows_of_turn; /* of prompts, planned since those who decode had their last turn */
    uint64_t turn_round;   /* in which a turn began that some still wait for; 0: nobody does */
    uint64_t round;
    char lost_why[STATUS_TEXT_MAX];

    step_cost_t cost;
    draft_cost_t draft_cost;
    uint64_t mean_context; /* of those that decode, in the last plan */
    step_plan_t plan; /* its arrays are reused */
    step_entry_t *entries_aside; /* to sort them by pool; NULL with one pool */
    struct flown *flown_aside;
    scheduler_load_t load;
};

/* A plan in the making. */
typedef struct {
    scheduler_t *s;
    flight_t *flight;
    uint32_t tokens_left;
    uint32_t entries_max;
    uint32_t drafts_left; /* of the tokens that one step may give */
    bool by_model; /* the guesses made last are a draft model's */
    bool alone;
    bool ahead; /* there is a batch in flight for every stage */
    int32_t decoding_top; /* the highest priority of those who decode; INT32_MAX: nobody does */
    /* Rows that prompts may still take. Those that are more urgent than all who decode count, but
     * are not held up when there are none left. */
    uint32_t prompt_rows;
    uint32_t piece_rows;  /* scheduler_piece_rows() */
    bool prompts_limited; /* because others wait for their next token */
    uint32_t n_prompts, prompt_at; /* of s->prompts, and how many of them had their turn */
    uint32_t may_start;            /* of those who wait, as far as is known */
    bool looked_again; /* at blocks for one that did not fit before */
    bool starts_over;  /* nobody else may start */
    uint32_t n_looked; /* taken out of line; those that did not start go back after the plan */
    uint32_t n_too_big;
    sequence_t *looked[SCHEDULER_LOOKS_MAX], *too_big[SCHEDULER_LOOKS_MAX];
} planning_t;

/* Between two steps a forward pass has gone through the caches; a plan that waits for each sequence
 * in turn spends half of its time there. */
static inline void scheduler_fetch(const sequence_t *q)
{
    for (size_t at = 0; at < offsetof(sequence_t, session); at += 64)
        __builtin_prefetch((const char *)q + at, 1);
}

/* Where the i-th oldest in flight stands, or the next one will. */
static inline uint32_t scheduler_flight(const scheduler_t *s, uint32_t i)
{
    return (s->flight_first + i) % (s->config.stages + 1);
}

static inline uint32_t sequence_produced(const sequence_t *q)
{
    return q->n_ids - q->n_prompt;
}

/* Eval: rows of its prompt are wanted that were not asked for yet. */
static inline bool sequence_owes_logits(const sequence_t *q)
{
    return q->logits_next < q->n_prompt;
}

static inline uint64_t sequence_committed(const sequence_t *q)
{
    return (uint64_t)q->n_prompt + q->max_tokens;
}

/* The blocks that q lives in. */
static inline kv_t *sequence_kv(const scheduler_t *s, const sequence_t *q)
{
    return s->pools[q->pool].kv;
}

/* scheduler_pools.c */
void scheduler_open_pools(scheduler_t *s, const char *text_identity);
void scheduler_close_pools(scheduler_t *s);
uint64_t scheduler_blocks_free(const scheduler_t *s);
/* The largest number of free blocks beside one for each sequence that runs there, of any pool. */
int64_t scheduler_room(const scheduler_t *s);
/* In all pools the same number. */
uint32_t scheduler_namespace(scheduler_t *s, const char *tenant, const char *adapter);
/* KV tokens of all that q may ever hold at once, when it has `tokens` in all. */
uint64_t scheduler_tokens_held(const scheduler_t *s, uint64_t tokens);
/* Gives back the blocks in `kv` that none of q's further rows sees. */
void scheduler_give_back(const scheduler_t *s, kv_t *kv, sequence_t *q);
/* Lets go of all its blocks. */
void scheduler_let_go(kv_t *kv, sequence_t *q);
/* Blocks that must be free before q starts: for all its tokens and the next one, or the next 256
 * when it returns, as far as it holds them at once. Beside them one for each sequence that runs in
 * the pool, so that a start is not undone in the next step. */
uint32_t scheduler_blocks_to_start(const scheduler_t *s, const sequence_t *q);
/* Gives q its first blocks, of which at most match_max are taken from its beginning, in the best pool
 * that has room for them. False when none has. */
bool scheduler_choose_pool(scheduler_t *s, sequence_t *q, uint32_t match_max);
/* The plan's entries by pool, otherwise in the order in which they were added. */
void scheduler_sort_entries(scheduler_t *s, flight_t *flight);

/* scheduler.c */
sequence_t *scheduler_find(const scheduler_t *s, const char *session, uint32_t choice);
/* Ends a sequence: its blocks and slot are free at once, its stream is owed the end. `error`, which
 * may be NULL, is kept and has to outlive the sequence. */
void scheduler_end(scheduler_t *s, sequence_t *q, end_reason_t end, finish_t finish,
                   const char *code, const char *error);
void scheduler_add(scheduler_t *s, sequence_t *q);
/* Frees a sequence that ended and that no step points to. */
void scheduler_forget(scheduler_t *s, sequence_t *q);
void scheduler_leave_running(scheduler_t *s, sequence_t *q);
/* It waits again, without blocks. Its slot stays: the last stage knows its ids, and the sampler's state
 * is a function of them. */
void scheduler_preempt(scheduler_t *s, sequence_t *q);
static inline uint32_t scheduler_known_max(const scheduler_t *s)
{
    return s->config.sequences_max * 4; /* ended ones are kept, but not without a bound */
}

/* ---- scheduler_queues.c; none of these but scheduler_reserve allocates ---- */
/* Makes room for one more sequence of q's kind in every order. */
void scheduler_reserve(scheduler_t *s, const sequence_t *q);
/* q waits and no step has it: it may start from now. No effect when it is there already. */
void scheduler_line_up(scheduler_t *s, sequence_t *q);
/* q does not wait any more, or has ended. */
void scheduler_leave_line(scheduler_t *s, sequence_t *q);
/* q begins to wait, or does not wait any more: for the counts. */
void scheduler_count_waiting(scheduler_t *s, const sequence_t *q, bool waits);
void scheduler_set_refused(scheduler_t *s, sequence_t *q, bool refused);
/* How many of this priority wait. */
uint32_t scheduler_waiting_at(const scheduler_t *s, int32_t priority);
/* The one that may start first, or NULL; it stays where it is. */
sequence_t *scheduler_first_waiting(const scheduler_t *s);
/* q leaves its tenant's line while it is looked at. Whoever does not start it lets it line up again. */
void scheduler_take_out(scheduler_t *s, sequence_t *q);
/* How many that wait and have at least this priority could start, as far as is known: not those that
 * lacked blocks at their last try, but for the first in line when there is more room now. And how many
 * whatever their priority. */
uint32_t scheduler_could_start(const scheduler_t *s, int32_t priority, uint32_t *all_out);
/* Who waits for this plan, and for what; and the prompts that run, in the order of their turns: by
 * priority, then, where rows are scarce, by tokens served to their tenants, then by arrival. */
void scheduler_queue(planning_t *p, step_queue_t *out);
/* Rows of prompts in a step, so that pieces of those there are follow each other through the stages;
 * UINT32_MAX: one chunk at a time, since there is one stage, or somebody decodes and prompts have few rows
 * beside those. */
uint32_t scheduler_piece_rows(const scheduler_t *s, const step_queue_t *queue);
/* Whether prompts and those who decode take turns: whole prompts, and stages to keep busy. */
bool scheduler_takes_turns(const scheduler_t *s, const step_queue_t *queue);
/* Whether the next plan is for pieces alone: those who decode beside whole prompts wait for the rows of a
 * whole step, in however many pieces it goes through the stages. Not for rows that are no more than a
 * piece, nor while a turn of theirs is under way: needs p->piece_rows. */
bool scheduler_pieces_first(const planning_t *p, const step_queue_t *queue);
/* Whether this plan leaves rows of prompts to later ones, as far as is known. */
bool scheduler_more_prompts(const planning_t *p);
/* ---- scheduler_prompts.c ---- */
/* Rows that q's prompt may have of the n that it wants. */
uint32_t scheduler_prompt_share(const planning_t *p, const sequence_t *q, uint32_t n);
/* How many rows prompts may have beside those who wait for their next token, in whichever of the
 * batches in flight they stand; once those of this plan have their entries and guesses. */
void scheduler_limit_prompts(planning_t *p, step_queue_t *queue);
/* Prompts that run, and those that start now; then further pieces of prompts of which some are still on
 * their way. */
void scheduler_plan_prompts(planning_t *p);
static inline bool scheduler_has_slot(const scheduler_t *s, const sequence_t *q)
{
    return q->slot != SLOT_NONE || s->n_slots_free > 0;
}
static inline bool scheduler_has_room(const planning_t *p)
{
    return p->tokens_left > 0 && p->flight->n < p->entries_max;
}
/* Gives q its pool, its blocks and a slot. False when blocks are too few. */
bool scheduler_start(scheduler_t *s, sequence_t *q);
/* scheduler_plan.c: puts q's next chunk into the plan. False when it got nothing. */
bool scheduler_add_entry(planning_t *p, sequence_t *q);

/* The solo one that may start first; it stays where it is. */
sequence_t *scheduler_next_solo(const scheduler_t *s);
/* To be called when an end, a stream or a step in flight of q changed: finds out anew what time
 * will do to it. */
void scheduler_retime(scheduler_t *s, sequence_t *q);
/* It is about to be freed. */
void scheduler_leave_time(scheduler_t *s, sequence_t *q);
/* As scheduler_tick, for at most n sequences. */
void scheduler_tick_some(scheduler_t *s, uint32_t n);

/* scheduler_draft.c */
/* What a step costs beside its rows, in rows that decode. */
static inline uint32_t scheduler_fixed_rows(const scheduler_t *s)
{
    return s->config.fixed_rows ? s->config.fixed_rows
                                : step_cost_fixed_rows(&s->cost, s->mean_context);
}
/* Guesses of the draft model that stand ready behind q's last id. */
uint32_t scheduler_drafted(const sequence_t *q);
/* An entry's n tokens have come. */
void scheduler_hold_drafts(scheduler_t *s, const struct flown *entry, const step_drawn_t *drawn,
                           uint32_t n);

/* scheduler_streams.c */
void scheduler_mark_dirty(scheduler_t *s, sequence_t *q);
void scheduler_detach(scheduler_t *s, sequence_t *q);

#endif
