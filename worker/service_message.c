/* Between protobuf and the scheduler's own types: see service_message.h. */
#include "worker/service_message.h"

#include <string.h>

static char *keep(arena_t *arena, const char *text)
{
    return arena_strndup(arena, text, strlen(text));
}

static status_t read_prompt(const Shoal__Worker__V1__Admit *admit, arena_t *arena,
                            admission_t *out)
{
    size_t n = 0;
    for (size_t i = 0; i < admit->n_prompt; i++) {
        const Shoal__V1__Segment *segment = admit->prompt[i];
        if (segment->segment_case != SHOAL__V1__SEGMENT__SEGMENT_TOKENS)
            return fail(STATUS_INVALID, "prompt: segment %zu is of an unknown kind; token ids "
                                        "would be right", i);
        n += segment->tokens->n_ids;
    }
    if (n > UINT32_MAX)
        return fail(STATUS_INVALID, "prompt: %zu ids are too many", n);
    uint32_t *ids = ARENA_NEW_ARRAY(arena, uint32_t, n ? n : 1);
    size_t at = 0;
    for (size_t i = 0; i < admit->n_prompt; i++) {
        const Shoal__V1__TokenIds *tokens = admit->prompt[i]->tokens;
        if (tokens->n_ids > 0)
            memcpy(ids + at, tokens->ids, tokens->n_ids * sizeof *ids);
        at += tokens->n_ids;
    }
    out->prompt = ids;
    out->n_prompt = (uint32_t)n;
    return STATUS_OK;
}

/* A continuation must be drawn as the first part was, so nothing may depend on defaults that could
 * differ between builds: the fields that decide a token have to be set. */
static status_t read_sampling(const Shoal__V1__Sampling *from, arena_t *arena, admission_t *out)
{
    if (!from)
        return fail(STATUS_INVALID, "sampling: missing");
    if (from->has_seed_case != SHOAL__V1__SAMPLING__HAS_SEED_SEED ||
        from->has_max_tokens_case != SHOAL__V1__SAMPLING__HAS_MAX_TOKENS_MAX_TOKENS)
        return fail(STATUS_INVALID, "sampling: seed and max_tokens have to be set");
    sampling_t *to = &out->sampling;
    *to = sampling_default;
    to->seed = from->seed;
    out->max_tokens = from->max_tokens;
    if (from->has_temperature_case == SHOAL__V1__SAMPLING__HAS_TEMPERATURE_TEMPERATURE)
        to->temperature = from->temperature;
    if (from->has_top_k_case == SHOAL__V1__SAMPLING__HAS_TOP_K_TOP_K)
        to->top_k = from->top_k;
    if (from->has_top_p_case == SHOAL__V1__SAMPLING__HAS_TOP_P_TOP_P)
        to->top_p = from->top_p;
    if (from->has_min_p_case == SHOAL__V1__SAMPLING__HAS_MIN_P_MIN_P)
        to->min_p = from->min_p;
    if (from->has_repetition_penalty_case ==
        SHOAL__V1__SAMPLING__HAS_REPETITION_PENALTY_REPETITION_PENALTY)
        to->repetition_penalty = from->repetition_penalty;
    if (from->has_presence_penalty_case ==
        SHOAL__V1__SAMPLING__HAS_PRESENCE_PENALTY_PRESENCE_PENALTY)
        to->presence_penalty = from->presence_penalty;
    if (from->has_frequency_penalty_case ==
        SHOAL__V1__SAMPLING__HAS_FREQUENCY_PENALTY_FREQUENCY_PENALTY)
        to->frequency_penalty = from->frequency_penalty;
    if (from->has_logprobs_case == SHOAL__V1__SAMPLING__HAS_LOGPROBS_LOGPROBS) {
        to->want_logprobs = true;
        to->n_top = from->logprobs;
    }
    if (from->n_logit_bias > SAMPLING_BIAS_MAX)
        return fail(STATUS_INVALID, "sampling: %zu biases; at most %u", from->n_logit_bias,
                    SAMPLING_BIAS_MAX);
    sampling_bias_t *bias = ARENA_NEW_ARRAY(arena, sampling_bias_t, from->n_logit_bias + 1);
    for (size_t i = 0; i < from->n_logit_bias; i++)
        bias[i] = (sampling_bias_t){from->logit_bias[i]->id, from->logit_bias[i]->bias};
    to->bias = bias;
    to->n_bias = (uint32_t)from->n_logit_bias;
    return STATUS_OK;
}

static status_t read_stop_ids(const Shoal__Worker__V1__Admit *admit, arena_t *arena,
                              admission_t *out)
{
    const Shoal__V1__Sampling *sampling = admit->sampling;
    size_t n_eos = sampling->ignore_eos ? 0 : admit->n_eos_ids;
    if (sampling->n_stop_ids > SAMPLING_STOP_IDS_MAX || n_eos > SAMPLING_EOS_IDS_MAX)
        return fail(STATUS_INVALID, "%zu stop ids and %zu eos_ids; at most %u and %u",
                    sampling->n_stop_ids, n_eos, SAMPLING_STOP_IDS_MAX, SAMPLING_EOS_IDS_MAX);
    uint32_t *ids = ARENA_NEW_ARRAY(arena, uint32_t, n_eos + sampling->n_stop_ids + 1);
    for (size_t i = 0; i < n_eos; i++)
        ids[i] = admit->eos_ids[i];
    for (size_t i = 0; i < sampling->n_stop_ids; i++)
        ids[n_eos + i] = sampling->stop_ids[i];
    out->stop_ids = ids;
    out->n_stop_ids = (uint32_t)(n_eos + sampling->n_stop_ids);
    return STATUS_OK;
}

status_t service_read_admit(const Shoal__Worker__V1__Admit *admit, arena_t *arena,
                            admission_t *out)
{
    *out = (admission_t){.logits_from = LOGITS_NONE};
    size_t n = strlen(admit->session);
    if (n == 0 || n >= SESSION_BYTES)
        return fail(STATUS_INVALID, "session: %zu characters; 32 hex digits are right", n);
    memcpy(out->session, admit->session, n + 1);
    out->choice = admit->choice;
    out->owner = admit->owner;
    out->from_n = admit->from_n;
    out->attach_only = admit->attach_only;
    if (admit->attach_only) {
        out->sampling = sampling_default;
        return STATUS_OK; /* nothing else of it is looked at */
    }
    if (admit->adapter[0])
        return fail(STATUS_INVALID, "adapter: \"%s\" is unknown; only \"\" is known",
                    admit->adapter);
    if (admit->role[0] && strcmp(admit->role, "both") != 0)
        return fail(STATUS_INVALID, "role: \"%s\"; only \"both\" is known", admit->role);
    if (admit->kv_from[0])
        return fail(STATUS_INVALID, "kv_from: only \"\" is known");
    TRY(read_prompt(admit, arena, out));
    TRY(read_sampling(admit->sampling, arena, out));
    TRY(read_stop_ids(admit, arena, out));
    if (admit->n_produced > UINT32_MAX)
        return fail(STATUS_INVALID, "produced: too many ids");
    out->produced = admit->produced;
    out->n_produced = (uint32_t)admit->n_produced;
    out->priority = admit->priority;
    out->deadline_ms = admit->deadline_ms;
    out->tenant = admit->tenant;
    out->adapter = admit->adapter;
    out->solo = admit->solo;
    return STATUS_OK;
}

static Shoal__V1__Logprobs *write_logprobs(const sampled_t *drawn, arena_t *arena)
{
    Shoal__V1__Logprobs *out = ARENA_NEW_ARRAY(arena, Shoal__V1__Logprobs, 1);
    shoal__v1__logprobs__init(out);
    out->logprob = drawn->logprob;
    out->n_top = drawn->n_top;
    out->top = ARENA_NEW_ARRAY(arena, Shoal__V1__TokenLogprob *, drawn->n_top + 1u);
    for (uint32_t i = 0; i < drawn->n_top; i++) {
        out->top[i] = ARENA_NEW_ARRAY(arena, Shoal__V1__TokenLogprob, 1);
        shoal__v1__token_logprob__init(out->top[i]);
        out->top[i]->id = drawn->top[i].id;
        out->top[i]->logprob = drawn->top[i].logprob;
    }
    return out;
}

static Shoal__Worker__V1__SequenceEnded *new_end(arena_t *arena, end_reason_t reason,
                                                 const char *code, const char *words)
{
    Shoal__Worker__V1__SequenceEnded *end =
        ARENA_NEW_ARRAY(arena, Shoal__Worker__V1__SequenceEnded, 1);
    shoal__worker__v1__sequence_ended__init(end);
    end->reason = (Shoal__Worker__V1__SequenceEnded__Reason)reason;
    if (code && code[0]) {
        end->error = ARENA_NEW_ARRAY(arena, Shoal__V1__Error, 1);
        shoal__v1__error__init(end->error);
        end->error->code = keep(arena, code);
        end->error->message = keep(arena, words);
    }
    return end;
}

static Shoal__Worker__V1__SequenceOutput *new_output(const char *session, uint32_t choice,
                                                     uint64_t owner, arena_t *arena)
{
    Shoal__Worker__V1__SequenceOutput *out =
        ARENA_NEW_ARRAY(arena, Shoal__Worker__V1__SequenceOutput, 1);
    shoal__worker__v1__sequence_output__init(out);
    out->session = keep(arena, session);
    out->choice = choice;
    out->owner = owner;
    return out;
}

Shoal__Worker__V1__SequenceOutput *service_write_output(const sequence_output_t *output,
                                                        const sampled_t *drawn, arena_t *arena)
{
    Shoal__Worker__V1__SequenceOutput *out =
        new_output(output->session, output->choice, output->owner, arena);
    out->first_position = output->first_position;
    out->n_ids = output->n_ids;
    out->ids = ARENA_NEW_ARRAY(arena, uint32_t, output->n_ids + 1u);
    memcpy(out->ids, output->ids, output->n_ids * sizeof *out->ids);
    if (output->has_logprobs && output->n_ids > 0) {
        out->n_logprobs = output->n_ids;
        out->logprobs = ARENA_NEW_ARRAY(arena, Shoal__V1__Logprobs *, output->n_ids);
        for (uint32_t i = 0; i < output->n_ids; i++)
            out->logprobs[i] = write_logprobs(&drawn[i], arena);
    }
    if (output->end != END_NONE) {
        out->ended = new_end(arena, output->end, output->error_code, output->error);
        out->ended->finish_reason = (Shoal__V1__FinishReason)output->finish;
        out->ended->cached_tokens = output->n_cached;
        out->ended->prompt_tokens = output->n_prompt;
    }
    return out;
}

Shoal__Worker__V1__SequenceOutput *service_write_refusal(const char *session, uint32_t choice,
                                                         uint64_t owner, const char *code,
                                                         const char *words, arena_t *arena)
{
    Shoal__Worker__V1__SequenceOutput *out = new_output(session, choice, owner, arena);
    out->ended = new_end(arena, END_REFUSED, code, words);
    return out;
}

void service_write_load(const scheduler_load_t *load, Shoal__Worker__V1__Load *out)
{
    shoal__worker__v1__load__init(out);
    out->running = load->running;
    out->waiting = load->waiting;
    out->kv_tokens_free = load->kv_tokens_free;
    out->kv_tokens_total = load->kv_tokens_total;
    out->prefix_hit_tokens = load->prefix_hit_tokens;
    out->sequences_max_in_step = load->sequences_max_in_step;
    out->tokens_produced = load->tokens_produced;
    out->preemptions = load->preemptions;
    out->drafted_tokens = load->drafted_tokens;
    out->accepted_tokens = load->accepted_tokens;
}
