/* What coordinators ask of the scheduler and what their streams are owed: admissions, attachments,
 * cancels, and the output that each stream reads at its own pace. */
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "worker/engine/scheduler_internal.h"

/* ---- streams ---- */

uint32_t scheduler_stream_open(scheduler_t *s, uint64_t now_ms)
{
    s->now_ms = now_ms;
    for (uint32_t i = 1; i <= SCHEDULER_STREAMS_MAX; i++)
        if (!s->streams[i].open) {
            s->streams[i] = (stream_t){.open = true};
            s->n_streams++;
            return i;
        }
    return 0;
}

void scheduler_mark_dirty(scheduler_t *s, sequence_t *q)
{
    stream_t *stream = &s->streams[q->stream];
    if (q->dirty || q->stream == 0)
        return;
    q->dirty = true;
    q->dirty_next = NULL;
    q->dirty_before = stream->dirty_last;
    if (stream->dirty_last)
        stream->dirty_last->dirty_next = q;
    else
        stream->dirty = q;
    stream->dirty_last = q;
}

static void unmark_dirty(scheduler_t *s, sequence_t *q)
{
    if (!q->dirty)
        return;
    stream_t *stream = &s->streams[q->stream];
    *(q->dirty_before ? &q->dirty_before->dirty_next : &stream->dirty) = q->dirty_next;
    *(q->dirty_next ? &q->dirty_next->dirty_before : &stream->dirty_last) = q->dirty_before;
    q->dirty = false;
}

void scheduler_detach(scheduler_t *s, sequence_t *q)
{
    if (q->stream == 0)
        return;
    unmark_dirty(s, q);
    s->streams[q->stream].committed_tokens -= sequence_committed(q);
    q->stream = 0;
    q->end_owed = false;
    q->detached_at_ms = s->now_ms;
    scheduler_retime(s, q);
}

static void attach(scheduler_t *s, sequence_t *q, uint32_t stream, uint32_t from_n)
{
    q->stream = stream;
    q->sent = from_n;
    q->end_owed = q->state == SEQUENCE_ENDED;
    s->streams[stream].committed_tokens += sequence_committed(q);
    if (q->end_owed || from_n < sequence_produced(q))
        scheduler_mark_dirty(s, q);
    scheduler_retime(s, q);
}

bool scheduler_stream_overrun(const scheduler_t *s, uint32_t stream)
{
    return stream <= SCHEDULER_STREAMS_MAX && s->streams[stream].overrun;
}

void scheduler_stream_close(scheduler_t *s, uint32_t stream, uint64_t now_ms)
{
    s->now_ms = now_ms;
    if (stream == 0 || stream > SCHEDULER_STREAMS_MAX || !s->streams[stream].open)
        return;
    for (sequence_t *q = s->all; q; q = q->all_next)
        if (q->stream == stream)
            scheduler_detach(s, q);
    for (notice_t *notice = s->streams[stream].notices, *next; notice; notice = next) {
        next = notice->next;
        free(notice);
    }
    s->streams[stream] = (stream_t){0};
    s->n_streams--;
}

static void notify(scheduler_t *s, uint32_t stream, const char *session, uint32_t choice,
                   uint64_t owner, end_reason_t end, const char *code, const char *error)
{
    stream_t *to = &s->streams[stream];
    to->overrun |= to->n_notices == SCHEDULER_NOTICES_MAX;
    if (to->overrun)
        return;
    notice_t *notice = MEM_NEW(notice_t);
    memcpy(notice->session, session, SESSION_BYTES);
    notice->choice = choice;
    notice->owner = owner;
    notice->end = end;
    notice->error_code = code;
    memcpy(notice->error, error, strnlen(error, STATUS_TEXT_MAX - 1));
    to->n_notices++;
    if (to->notices)
        to->notices_last->next = notice;
    else
        to->notices = notice;
    to->notices_last = notice;
}

/* ---- admissions ---- */

static status_t check_ids(const char *what, const uint32_t *ids, uint32_t n, uint32_t vocab)
{
    for (uint32_t i = 0; i < n; i++)
        if (ids[i] >= vocab)
            return fail(STATUS_INVALID, "%s[%u] is %u; ids are below the vocabulary, %u", what, i,
                        ids[i], vocab);
    return STATUS_OK;
}

/* INVALID or EXHAUSTED; the code is what the coordinator is told. */
static status_t check_admission(const scheduler_t *s, const admission_t *a, const char **code_out)
{
    const scheduler_config_t *c = &s->config;
    *code_out = "invalid";
    if (a->n_prompt == 0)
        return fail(STATUS_INVALID, "the prompt is empty; it needs at least one token");
    if (a->max_tokens == 0)
        return fail(STATUS_INVALID, "max_tokens is 0; it must be at least 1");
    if (a->n_produced > a->max_tokens || a->from_n > a->n_produced)
        return fail(STATUS_INVALID,
                    "from_n %u, %u produced ids, max_tokens %u: they must not descend", a->from_n,
                    a->n_produced, a->max_tokens);
    if (a->n_stop_ids > SAMPLING_STOP_IDS_MAX + SAMPLING_EOS_IDS_MAX)
        return fail(STATUS_INVALID, "%u stop ids; at most %u", a->n_stop_ids,
                    SAMPLING_STOP_IDS_MAX + SAMPLING_EOS_IDS_MAX);
    if (a->adapter && a->adapter[0])
        return fail(STATUS_INVALID, "adapter \"%.64s\": this replica has none", a->adapter);
    TRY(sampling_check(&a->sampling, c->vocab));
    TRY(check_ids("prompt", a->prompt, a->n_prompt, c->vocab));
    TRY(check_ids("produced", a->produced, a->n_produced, c->vocab));
    *code_out = "too_long";
    uint64_t tokens = (uint64_t)a->n_prompt + a->max_tokens;
    if (tokens > c->context_max)
        return fail(STATUS_INVALID,
                    "the prompt has %u tokens and max_tokens is %u; together at most %u",
                    a->n_prompt, a->max_tokens, c->context_max);
    if (kv_blocks_for(scheduler_tokens_held(s, tokens)) > c->n_blocks)
        return fail(STATUS_INVALID, "prompt and answer need %llu KV tokens; the replica has %llu",
                    (unsigned long long)scheduler_tokens_held(s, tokens),
                    (unsigned long long)c->n_blocks * KV_BLOCK_TOKENS);
    *code_out = "overloaded";
    if (s->n_waiting + s->n_running >= c->sequences_max)
        return fail(STATUS_EXHAUSTED, "the replica has %u sequences; try again later",
                    c->sequences_max);
    if (s->n_known - s->n_settled >= scheduler_known_max(s))
        return fail(STATUS_EXHAUSTED, "the ends of %u sequences were not read; try again later",
                    s->n_known - s->n_settled);
    return STATUS_OK;
}

static uint32_t tenant_index(scheduler_t *s, const char *name)
{
    uint64_t least = UINT64_MAX;
    for (uint32_t i = 0; i < s->n_tenants; i++) {
        if (strcmp(s->tenants[i].name, name) == 0)
            return i;
        if (s->tenants[i].served < least)
            least = s->tenants[i].served;
    }
    if (s->n_tenants == SCHEDULER_TENANTS_MAX)
        return SCHEDULER_TENANTS_MAX - 1; /* the late ones share one account */
    /* A newcomer starts level with the least served, or it would have the replica to itself until
     * it had caught up with everything served before it came. */
    s->tenants[s->n_tenants] =
        (tenant_t){.name = mem_strdup(name), .served = s->n_tenants ? least : 0};
    return s->n_tenants++;
}

static void *copy_of(const void *from, size_t n, size_t size)
{
    void *copy = mem_new(n ? n : 1, size);
    if (n)
        memcpy(copy, from, n * size);
    return copy;
}

static sequence_t *sequence_new(scheduler_t *s, const admission_t *a)
{
    sequence_t *q = MEM_NEW(sequence_t);
    size_t capacity = (size_t)a->n_prompt + a->max_tokens;
    memcpy(q->session, a->session, SESSION_BYTES - 1);
    q->choice = a->choice;
    q->owner = a->owner;
    q->serial = ++s->serial;
    q->state = SEQUENCE_WAITING;
    q->ids = MEM_NEW_ARRAY(uint32_t, capacity);
    memcpy(q->ids, a->prompt, a->n_prompt * sizeof *q->ids);
    if (a->n_produced)
        memcpy(q->ids + a->n_prompt, a->produced, a->n_produced * sizeof *q->ids);
    q->n_prompt = a->n_prompt;
    q->n_given = a->n_produced;
    q->n_ids = a->n_prompt + a->n_produced;
    q->sampling = a->sampling;
    q->sampling.bias = copy_of(a->sampling.bias, a->sampling.n_bias, sizeof *a->sampling.bias);
    if (a->sampling.want_logprobs)
        q->drawn = MEM_NEW_ARRAY(sampled_t, a->max_tokens - a->n_produced + 1);
    q->max_tokens = a->max_tokens;
    q->n_stop_ids = a->n_stop_ids;
    q->stop_ids = copy_of(a->stop_ids, a->n_stop_ids, sizeof *a->stop_ids);
    q->priority = a->priority;
    bool has_deadline = a->deadline_ms > 0 && a->deadline_ms < UINT64_MAX - s->now_ms;
    q->deadline_at_ms = has_deadline ? s->now_ms + a->deadline_ms : UINT64_MAX;
    const char *tenant = a->tenant ? a->tenant : "";
    q->tenant = tenant_index(s, tenant);
    q->namespace_id = scheduler_namespace(s, tenant, a->adapter ? a->adapter : "");
    q->solo = a->solo;
    q->logits_next = a->logits_from;
    q->blocks = MEM_NEW_ARRAY(uint32_t, kv_blocks_for(capacity));
    q->slot = SLOT_NONE;
    q->error_code = "";
    if (s->config.speculate_max > 0 && !a->solo)
        lookup_start(&q->draft, (uint32_t)capacity, q->ids, q->n_ids);
    return q;
}

/* A continuation whose given ids already end it. */
static void end_if_complete(scheduler_t *s, sequence_t *q)
{
    if (sequence_produced(q) == 0)
        return;
    uint32_t last = q->ids[q->n_ids - 1];
    for (uint32_t i = 0; i < q->n_stop_ids; i++)
        if (q->stop_ids[i] == last) {
            scheduler_end(s, q, END_FINISHED, FINISH_STOP, "", NULL);
            return;
        }
    if (sequence_produced(q) >= q->max_tokens)
        scheduler_end(s, q, END_FINISHED, FINISH_LENGTH, "", NULL);
}

static void attach_known(scheduler_t *s, sequence_t *q, uint32_t stream, const admission_t *a)
{
    if (a->owner < q->owner) {
        notify(s, stream, a->session, a->choice, a->owner, END_SUPERSEDED, "superseded",
               "another coordinator has taken this session over");
        return;
    }
    if (q->stream != 0 && q->stream != stream)
        notify(s, q->stream, q->session, q->choice, q->owner, END_SUPERSEDED, "superseded",
               "another coordinator has taken this session over");
    scheduler_detach(s, q);
    q->owner = a->owner;
    attach(s, q, stream, a->from_n);
}

/* Cancelled by a coordinator that gave it up, or because nobody held it for a while, and now wanted
 * again: that end is no answer to this admission, so the sequence starts anew. */
static bool starts_anew(const sequence_t *q, const admission_t *a)
{
    return q->state == SEQUENCE_ENDED && q->end == END_CANCELLED && !a->attach_only &&
           a->owner >= q->owner && q->stream == 0 && q->n_in_flight == 0 &&
           strcmp(q->error_code, "cancelled") == 0;
}

void scheduler_admit(scheduler_t *s, uint32_t stream, const admission_t *a, uint64_t now_ms)
{
    s->now_ms = now_ms;
    if (stream == 0 || stream > SCHEDULER_STREAMS_MAX || !s->streams[stream].open ||
        s->streams[stream].overrun)
        return;
    sequence_t *known = scheduler_find(s, a->session, a->choice);
    if (known && !s->lost && starts_anew(known, a)) {
        scheduler_forget(s, known);
    } else if (known) {
        attach_known(s, known, stream, a);
        return;
    }
    const char *code = "replica_lost";
    if (s->lost) {
        notify(s, stream, a->session, a->choice, a->owner, END_REPLICA_LOST, code,
               "the epoch is over");
        return;
    }
    if (a->attach_only) {
        notify(s, stream, a->session, a->choice, a->owner, END_REFUSED, "unknown",
               "this replica does not know the sequence");
        return;
    }
    if (check_admission(s, a, &code) != STATUS_OK) {
        notify(s, stream, a->session, a->choice, a->owner, END_REFUSED, code, status_text());
        return;
    }
    sequence_t *q = sequence_new(s, a);
    scheduler_add(s, q);
    attach(s, q, stream, a->from_n);
    end_if_complete(s, q);
}

void scheduler_cancel(scheduler_t *s, const char *session, uint32_t choice, uint64_t owner,
                      uint64_t now_ms)
{
    s->now_ms = now_ms;
    sequence_t *q = scheduler_find(s, session, choice);
    if (q && owner >= q->owner)
        scheduler_end(s, q, END_CANCELLED, FINISH_NONE, "cancelled", "cancelled on request");
}

/* ---- output ---- */

static void output_notice(stream_t *stream, sequence_output_t *out)
{
    notice_t *notice = stream->notices;
    stream->notices = notice->next;
    stream->n_notices--;
    memcpy(out->session, notice->session, SESSION_BYTES);
    out->choice = notice->choice;
    out->owner = notice->owner;
    out->end = notice->end;
    out->error_code = notice->error_code;
    memcpy(out->error, notice->error, sizeof out->error);
    free(notice);
}

static void output_end(scheduler_t *s, sequence_t *q, sequence_output_t *out)
{
    out->end = q->end;
    out->finish = q->finish;
    out->error_code = q->error_code;
    if (q->error)
        memcpy(out->error, q->error, strnlen(q->error, sizeof out->error - 1));
    /* The end is the last thing that this admission is owed; a later one may attach again. */
    scheduler_detach(s, q);
}

bool scheduler_output(scheduler_t *s, uint32_t number, sequence_output_t *out)
{
    stream_t *stream = &s->streams[number];
    if (!stream->open || (!stream->notices && !stream->dirty))
        return false;
    *out = (sequence_output_t){.error_code = ""};
    if (stream->notices) {
        output_notice(stream, out);
        return true;
    }
    sequence_t *q = stream->dirty;
    memcpy(out->session, q->session, SESSION_BYTES);
    out->choice = q->choice;
    out->owner = q->owner;
    out->n_prompt = q->n_prompt;
    out->n_cached = q->n_cached;
    out->first_position = q->sent;
    uint32_t produced = sequence_produced(q);
    if (q->sent < produced) {
        uint32_t n = produced - q->sent;
        out->n_ids = n < SCHEDULER_OUTPUT_IDS_MAX ? n : SCHEDULER_OUTPUT_IDS_MAX;
        memcpy(out->ids, q->ids + q->n_prompt + q->sent, out->n_ids * sizeof *out->ids);
        /* Ids that came with the admission were drawn elsewhere and have no log-probabilities. */
        out->has_logprobs = q->drawn && q->sent >= q->n_given;
        if (out->has_logprobs)
            out->drawn = q->drawn + (q->sent - q->n_given);
        else if (q->drawn && q->sent + out->n_ids > q->n_given)
            out->n_ids = q->n_given - q->sent;
        q->sent += out->n_ids;
    }
    if (q->sent >= produced) {
        unmark_dirty(s, q);
        if (q->end_owed)
            output_end(s, q, out);
    }
    return true;
}

bool scheduler_has_output(const scheduler_t *s, uint32_t stream)
{
    return s->streams[stream].open && (s->streams[stream].notices || s->streams[stream].dirty);
}

uint64_t scheduler_credit(const scheduler_t *s, uint32_t stream)
{
    uint64_t total = s->load.kv_tokens_total;
    uint64_t free_tokens = total > s->tokens_committed ? total - s->tokens_committed : 0;
    uint32_t n = s->n_streams ? s->n_streams : 1;
    uint64_t share = free_tokens / n;
    /* Behind a window a sequence may be longer than what it holds at once, and than all there is:
     * where one has room, its length is no matter. */
    if (s->config.window > 0 && share < s->config.context_max &&
        free_tokens >= scheduler_tokens_held(s, s->config.context_max))
        share = s->config.context_max;
    return s->streams[stream].committed_tokens + share;
}
