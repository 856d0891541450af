/* From a claimed line to an item that the core can run: parse, template, tokenize, on the work
 * team. Also remembers each claimed item's custom_id, which the core does not know and the result
 * needs. */
#include <stdlib.h>
#include <string.h>

#include "common/base/failpoint.h"
#include "coordinator/stores_state.h"

enum { SWEEP_MIN = 1024 };

typedef struct {
    char *custom_id;
    char *job;
    uint64_t index;
    size_t key_size;
    char key[]; /* "job:index" */
} name_t;

typedef struct {
    jobs_item_t item; /* texts in the arena */
    request_t request;
    token_ids_t ids;
    core_claimed_t claimed;
} prepared_t;

typedef struct {
    shell_t *shell;
    uint64_t op;
    jobs_code_t code;
    prepared_t *items;
    size_t n;
    const model_entry_t *entry;
    uint32_t context_max;
    arena_t arena;
} claim_t;

/* ---- names ---- */

static void name_free(name_t *take_name)
{
    if (!take_name)
        return;
    free(take_name->custom_id);
    free(take_name->job);
    free(take_name);
}

static char *item_key(const char *job, uint64_t index)
{
    return mem_format("%s:%llu", job, (unsigned long long)index);
}

const char *stores_custom_id(shell_t *shell, const core_item_ref_t *ref)
{
    char *key = item_key(ref->job, ref->index);
    const name_t *name = table_get(&shell->stores->items, key, strlen(key));
    free(key);
    return name ? name->custom_id : "";
}

void stores_forget_item(shell_t *shell, const char *job, uint64_t index)
{
    char *key = item_key(job, index);
    name_t *name = table_remove(&shell->stores->items, key, strlen(key));
    free(key);
    name_free(name);
}

/* Most names go with the last word of Redis about their item. An item that ends without one (its
 * claim was adopted or released meanwhile) is noticed here, when the names are twice as many as
 * those that are needed. */
static void sweep(shell_t *shell)
{
    stores_t *stores = shell->stores;
    if (stores->items.n < stores->items_sweep_at)
        return;
    name_t **gone = MEM_NEW_ARRAY(name_t *, stores->items.n + 1);
    size_t n = 0, at = 0;
    for (name_t *name; (name = table_next(&stores->items, &at));)
        if (!core_holds_item(shell->core, name->job, name->index))
            gone[n++] = name;
    for (size_t i = 0; i < n; i++) {
        table_remove(&stores->items, gone[i]->key, gone[i]->key_size);
        name_free(gone[i]);
    }
    free(gone);
    size_t twice = stores->items.n * 2;
    stores->items_sweep_at = twice > SWEEP_MIN ? twice : SWEEP_MIN;
}

static void remember(shell_t *shell, const prepared_t *item)
{
    stores_forget_item(shell, item->item.job, item->item.index);
    char *key = item_key(item->item.job, item->item.index);
    size_t n = strlen(key);
    name_t *name = mem_new(1, sizeof *name + n + 1);
    memcpy(name->key, key, n + 1);
    free(key);
    name->key_size = n;
    name->job = mem_strdup(item->item.job);
    name->index = item->item.index;
    name->custom_id = mem_strdup(item->request.custom_id ? item->request.custom_id : "");
    table_put(&shell->stores->items, name->key, n, name);
}

void stores_items_close(shell_t *shell)
{
    size_t at = 0;
    for (name_t *name; (name = table_next(&shell->stores->items, &at));)
        name_free(name);
    table_release(&shell->stores->items);
}

/* ---- the way of a claim ---- */

static void claim_free(claim_t *take_claim)
{
    for (size_t i = 0; i < take_claim->n; i++) {
        request_release(&take_claim->items[i].request);
        token_ids_release(&take_claim->items[i].ids);
    }
    arena_release(&take_claim->arena);
    free(take_claim);
}

static void tell_claimed(shell_t *shell, void *take_data)
{
    claim_t *claim = take_data;
    core_claimed_t *list = ARENA_NEW_ARRAY(&claim->arena, core_claimed_t, claim->n + 1);
    for (size_t i = 0; i < claim->n; i++) {
        list[i] = claim->items[i].claimed;
        remember(shell, &claim->items[i]);
    }
    if (claim->n)
        (void)FAILPOINT("coordinator.claimed");
    shell_event(shell, &(core_event_t){.kind = CORE_EVENT_CLAIMED,
                                       .claimed = {claim->op, claim->code, list, claim->n}});
    if (claim->n)
        sweep(shell);
    claim_free(claim);
}

static status_t prepare_request(claim_t *claim, prepared_t *p, const char **code_out)
{
    *code_out = "invalid";
    TRY(request_from_line(p->item.body, p->item.body_bytes, &claim->arena, &p->request));
    Shoal__V1__Sampling *sampling = &p->request.sampling;
    if (sampling->choices > 1)
        return fail(STATUS_INVALID, "choices: %u; an item of a job has one", sampling->choices);
    TRY(models_encode(claim->entry, &p->request, &p->ids));
    bool asked = sampling->has_max_tokens_case != SHOAL__V1__SAMPLING__HAS_MAX_TOKENS__NOT_SET;
    if (p->ids.n + (asked ? sampling->max_tokens : 1) > claim->context_max)
        *code_out = "too_long";
    TRY(request_fit(&p->request, p->ids.n, claim->entry->sizes.config.vocab, claim->context_max));
    if (!p->request.has_seed) {
        sampling->has_seed_case = SHOAL__V1__SAMPLING__HAS_SEED_SEED;
        sampling->seed = p->item.seed;
    }
    return STATUS_OK;
}

static void prepare(shell_t *shell, void *take_data)
{
    claim_t *claim = take_data;
    for (size_t i = 0; i < claim->n; i++) {
        prepared_t *p = &claim->items[i];
        const char *code;
        p->claimed.ref = (core_item_ref_t){p->item.job, p->item.index, p->item.attempt};
        p->claimed.deaths = p->item.deaths;
        if (prepare_request(claim, p, &code) != STATUS_OK) {
            const char *text = status_text();
            p->claimed.error_code = code;
            p->claimed.error_message = arena_strndup(&claim->arena, text, strlen(text));
        }
        p->claimed.request = (core_request_t){.deployment = p->item.deployment,
                                              .prompt = p->ids.ids,
                                              .n_prompt = p->ids.n,
                                              .sampling = &p->request.sampling,
                                              .priority = p->item.priority,
                                              .deadline_ms = p->item.deadline_left_ms,
                                              .tenant = p->item.tenant};
    }
    shell_post(shell, tell_claimed, claim);
}

/* The deployment's tokenizer is known on the core thread only. */
static void find_model(shell_t *shell, void *take_data)
{
    claim_t *claim = take_data;
    core_deployment_view_t view;
    if (claim->n && atomic_load(&shell->running) &&
        core_find_deployment(shell->core, claim->items[0].item.deployment, &view))
        claim->entry = models_of(shell, view.tokenizer);
    if (claim->entry) {
        claim->context_max = view.context_max;
        shell_work(shell, prepare, claim);
        return;
    }
    if (claim->n) {
        /* The deployment went meanwhile. The claim stands in Redis; asking again with the same
         * nonce returns the same items once there is a model to prepare them with. */
        claim->code = JOBS_UNREACHABLE;
        claim->n = 0;
    }
    tell_claimed(shell, claim);
}

void stores_claimed(shell_t *shell, uint64_t op, const jobs_reply_t *reply)
{
    claim_t *claim = MEM_NEW(claim_t);
    claim->shell = shell;
    claim->op = op;
    claim->code = reply->code;
    claim->n = reply->n_items;
    claim->items = ARENA_NEW_ARRAY(&claim->arena, prepared_t, claim->n + 1);
    for (size_t i = 0; i < claim->n; i++) {
        jobs_item_t *item = &claim->items[i].item;
        *item = reply->items[i];
        item->job = arena_strndup(&claim->arena, item->job, strlen(item->job));
        item->tenant = arena_strndup(&claim->arena, item->tenant, strlen(item->tenant));
        item->deployment = arena_strndup(&claim->arena, item->deployment, strlen(item->deployment));
        item->body = (const uint8_t *)arena_strndup(&claim->arena, (const char *)item->body,
                                                    item->body_bytes);
    }
    shell_post(shell, find_model, claim);
}
