/* One replica's plan: asks the planner where its ranks go and writes plan and assignments in one
 * transaction, which holds only while this coordinator is elected and nobody has planned this slot
 * since. The plan's mod-revision is then the epoch.
 *
 * What the epoch before left behind is removed in the same transaction. Where that would be more
 * than etcd takes, it is removed before, in transactions of its own under the same guards: as long
 * as the old plan stands it lists what has to go, so a coordinator that is elected in between
 * begins anew and misses nothing. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "common/model/kv_type.h"
#include "coordinator/core/rollout.h"

enum {
    TXN_OPS_MAX = 120,        /* etcd refuses more than 128 in a transaction */
    TXN_BYTES_MAX = 1 << 20,  /* and a request of more than 1.5 MiB */
    LOAD_BYTES_PER_MS = 50000, /* slowest disk a formation deadline allows for: 50 MB/s */
};

static const Shoal__Cluster__V1__ShapeRecord *override_of(const slot_t *slot)
{
    const Shoal__Cluster__V1__DeploymentRecord *r = slot->deployment->record;
    for (size_t i = 0; i < r->n_shapes; i++)
        if (r->shapes[i]->ordinal == slot->ordinal)
            return r->shapes[i];
    return NULL;
}

/* What a slot's replica is to be; 0 leaves a number to the planner. */
typedef struct {
    uint32_t tp, stages, expert_groups, attention_slices, attention_replicas;
} wanted_t;

/* The cut belongs to the deployment's tp, so a slot with a shape of its own leaves it open. */
static wanted_t wanted_shape(const slot_t *slot)
{
    const Shoal__Cluster__V1__ShapeRecord *own = override_of(slot);
    const Shoal__Cluster__V1__DeploymentRecord *record = slot->deployment->record;
    if (own)
        return (wanted_t){.tp = own->tp, .stages = own->stages};
    return (wanted_t){record->tp, record->stages, record->expert_groups,
                      record->attention_slices, record->attention_replicas};
}

/* One is what nobody asked for, also in a plan from before there were more. */
static uint32_t one_or_more(uint32_t replicas)
{
    return replicas ? replicas : 1;
}

bool plans_same_text(const slot_t *slot)
{
    const Shoal__Cluster__V1__DeploymentRecord *want = slot->deployment->record;
    return strcmp(slot->plan->model_digest, want->model_digest) == 0 &&
           strcmp(slot->plan->activations, want->activations) == 0 &&
           strcmp(slot->plan->kv, want->kv) == 0 &&
           strcmp(slot->plan->quantize, want->quantize) == 0;
}

bool plans_same_shape(const slot_t *slot)
{
    const Shoal__Cluster__V1__DeploymentRecord *want = slot->deployment->record;
    const Shoal__Cluster__V1__ReplicaPlan *is = slot->plan;
    wanted_t w = wanted_shape(slot);
    return plans_same_text(slot) && (!w.tp || w.tp == is->tp) &&
           (!w.stages || w.stages == is->stages) &&
           (!w.expert_groups || w.expert_groups == is->expert_groups) &&
           (!w.attention_slices || w.attention_slices == is->attention_slices) &&
           one_or_more(w.attention_replicas) == one_or_more(is->attention_replicas) &&
           want->context_max == is->context_max &&
           want->prefill_tokens_max == is->prefill_tokens_max &&
           want->speculate_max == is->speculate_max && want->speculate_off == is->speculate_off &&
           want->prefix_cache_off == is->prefix_cache_off &&
           want->whole_prompts == is->whole_prompts &&
           strcmp(want->draft_digest, is->draft_digest) == 0 &&
           want->kv_tokens_max == is->kv_tokens_wanted;
}

/* ---- the world as the planner sees it ---- */

static void add_hosts(core_t *core, plan_world_t *world)
{
    arena_t *arena = &core->out->arena;
    plan_host_t *hosts = ARENA_NEW_ARRAY(arena, plan_host_t, core->hosts.n + 1);
    size_t n = 0, i = 0;
    for (const host_t *h; (h = table_next(&core->hosts, &i));) {
        if (!h->record || h->gone_at_ms)
            continue;
        hosts[n++] = (plan_host_t){
            .id = h->id,
            .cores = h->record->cores,
            .memory_bytes = h->record->memory_bytes,
            .model_digests = h->digests,
            .n_model_digests = h->record->n_models,
            .draining = h->draining,
            .suspect = h->suspect_until_ms > core->now_ms,
        };
    }
    world->hosts = hosts;
    world->n_hosts = n;
    plan_host_pair_t *pairs = ARENA_NEW_ARRAY(arena, plan_host_pair_t, PAIRS_MAX);
    n = 0;
    for (i = 0; i < core->n_pairs; i++)
        if (core->pairs[i].until_ms > core->now_ms)
            pairs[n++] = (plan_host_pair_t){core->pairs[i].a, core->pairs[i].b};
    world->avoided = pairs;
    world->n_avoided = n;
}

static plan_shape_t shape_of(const Shoal__Cluster__V1__DeploymentRecord *r, wanted_t shape)
{
    return (plan_shape_t){
        .tp = shape.tp,
        .stages = shape.stages,
        .expert_groups = shape.expert_groups,
        .attention_slices = shape.attention_slices,
        .attention_replicas = shape.attention_replicas,
        .context_max = r->context_max,
        .activations_f32 = strcmp(r->activations, "f32") == 0,
        .kv_codes = kv_type_is_codes(r->kv),
        .kv_tokens_max = r->kv_tokens_max,
        .prefill_tokens_max = (uint32_t)r->prefill_tokens_max,
        .draft_bytes = r->draft_bytes,
    };
}

static uint64_t rank_memory(const slot_t *slot, const Shoal__Cluster__V1__RankPlan *rank)
{
    const deployment_t *d = slot->deployment;
    if (!d->sizes || !d->record)
        return 0;
    const Shoal__Cluster__V1__ReplicaPlan *is = slot->plan;
    plan_shape_t shape = shape_of(
        d->record, (wanted_t){is->tp, is->stages, is->expert_groups, is->attention_slices,
                              is->attention_replicas});
    /* What stands is as it was planned, whatever the deployment wants by now. */
    shape.context_max = (uint32_t)is->context_max;
    shape.activations_f32 = strcmp(is->activations, "f32") == 0;
    shape.kv_codes = kv_type_is_codes(is->kv);
    shape.prefill_tokens_max = (uint32_t)is->prefill_tokens_max;
    shape.kv_tokens_max = 0;
    shape.draft_bytes = is->draft_bytes;
    shape.shared_head = is->shared_head;
    plan_need_t need;
    if (plan_need(d->sizes, &shape, rank->stage, rank->slice, &need) != STATUS_OK)
        return 0;
    return need.fixed + plan_kv_bytes(&need, slot->plan->kv_tokens_max);
}

static void add_existing(core_t *core, const slot_t *except, plan_world_t *world)
{
    size_t n = 0;
    for (size_t i = 0; i < core->n_deployments; i++)
        for (size_t k = 0; k < core->deployments[i]->n_slots; k++) {
            const slot_t *s = core->deployments[i]->slots[k];
            n += s && s->plan && s != except ? s->plan->n_ranks : 0;
        }
    plan_existing_t *list = ARENA_NEW_ARRAY(&core->out->arena, plan_existing_t, n + 1);
    n = 0;
    for (size_t i = 0; i < core->n_deployments; i++)
        for (size_t k = 0; k < core->deployments[i]->n_slots; k++) {
            const slot_t *s = core->deployments[i]->slots[k];
            for (size_t r = 0; s && s->plan && s != except && r < s->plan->n_ranks; r++)
                list[n++] = (plan_existing_t){
                    .host = s->plan->ranks[r]->host,
                    .deployment = s->deployment->name,
                    .ordinal = s->ordinal,
                    .threads = s->plan->ranks[r]->threads,
                    .memory_bytes = rank_memory(s, s->plan->ranks[r]),
                };
        }
    world->existing = list;
    world->n_existing = n;
}

/* Tries the wanted shape; where it is open, the smallest that can be placed. */
static status_t place(core_t *core, const slot_t *slot, plan_shape_t *shape_out,
                      plan_placement_t *out)
{
    static const uint32_t open_shapes[][2] = {{1, 1}, {2, 1}, {1, 2}, {2, 2}, {4, 1}, {1, 4},
                                              {4, 2}, {2, 4}, {4, 4}, {8, 1}, {8, 2}};
    const deployment_t *d = slot->deployment;
    plan_world_t world = {0};
    add_hosts(core, &world);
    add_existing(core, slot, &world);
    wanted_t want = wanted_shape(slot);
    status_t status = STATUS_REFUSED;
    for (size_t i = 0; i < sizeof open_shapes / sizeof *open_shapes; i++) {
        wanted_t shape = want;
        shape.tp = want.tp ? want.tp : open_shapes[i][0];
        shape.stages = want.stages ? want.stages : open_shapes[i][1];
        plan_request_t request = {
            .deployment = d->name,
            .ordinal = slot->ordinal,
            .model_digest = d->record->model_digest,
            .sizes = d->sizes,
            .shape = shape_of(d->record, shape),
            .replicas = d->record->replicas,
        };
        status = plan_replica(&world, &request, out);
        *shape_out = request.shape;
        if (status == STATUS_OK || (want.tp && want.stages))
            break;
    }
    return status;
}

/* ---- the transaction ---- */

typedef struct {
    core_write_t *writes;
    size_t n;
} writes_t;

static void add_write(core_t *core, writes_t *w, const char *key, const uint8_t *value, size_t n)
{
    CHECK(w->n < TXN_OPS_MAX);
    w->writes[w->n++] = (core_write_t){core_copy(core, key), value, n};
}

static writes_t new_writes(core_t *core)
{
    return (writes_t){.writes = ARENA_NEW_ARRAY(&core->out->arena, core_write_t, TXN_OPS_MAX)};
}

static void assign_key(const slot_t *slot, const char *host, char *out, size_t size)
{
    snprintf(out, size, "assign/%s/%s/%u", host, slot->deployment->name, slot->ordinal);
}

static bool has_write(const writes_t *w, const char *key)
{
    for (size_t i = 0; i < w->n; i++)
        if (strcmp(w->writes[i].key, key) == 0)
            return true;
    return false;
}

/* ---- what the epoch before left ---- */

/* Assignments that no longer hold, and what ranks of the epoch before had written. */
typedef struct {
    const char **keys;
    size_t *numbers; /* in slot->removed */
    size_t n;
} removals_t;

static bool removed(const slot_t *slot, size_t number)
{
    return slot->removed && slot->removed[number];
}

static void add_removal(core_t *core, removals_t *list, const char *key, size_t number)
{
    for (size_t i = 0; i < list->n; i++)
        if (strcmp(list->keys[i], key) == 0)
            return;
    list->keys[list->n] = core_copy(core, key);
    list->numbers[list->n++] = number;
}

static removals_t find_removals(core_t *core, const slot_t *slot, const writes_t *w)
{
    size_t n_ranks = slot->plan ? slot->plan->n_ranks : 0;
    removals_t list = {ARENA_NEW_ARRAY(&core->out->arena, const char *, n_ranks * 2 + 1),
                       ARENA_NEW_ARRAY(&core->out->arena, size_t, n_ranks * 2 + 1), 0};
    char key[CORE_NAME_SIZE * 3];
    for (size_t i = 0; i < n_ranks; i++) {
        snprintf(key, sizeof key, "ranks/%s/%u/%llu/%zu", slot->deployment->name, slot->ordinal,
                 (unsigned long long)slot->epoch, i);
        if (!removed(slot, n_ranks + i))
            add_removal(core, &list, key, n_ranks + i);
    }
    /* Last, so that the ranks that go keep their assignments as long as can be. */
    for (size_t i = 0; i < n_ranks; i++) {
        assign_key(slot, slot->plan->ranks[i]->host, key, sizeof key);
        if (!removed(slot, i) && !has_write(w, key))
            add_removal(core, &list, key, i);
    }
    return list;
}

void plans_forget_removals(slot_t *slot)
{
    free(slot->removed);
    slot->removed = NULL;
    slot->removing = false;
}

static void send_txn(core_t *core, slot_t *slot, const char *plan_key, const writes_t *w)
{
    core_compare_t *compares = ARENA_NEW_ARRAY(&core->out->arena, core_compare_t, 2);
    size_t n = 0;
    bool fenced = core->config.mutant != CORE_MUTANT_NO_FENCE;
    if (fenced) {
        const char *key = core_copy(core, core->election_key);
        compares[n++] = (core_compare_t){key, true, core->election_revision};
        compares[n++] = (core_compare_t){core_copy(core, plan_key), false, slot->epoch};
    }
    core_action_t *action = core_act(core, CORE_ACTION_TXN);
    action->op = slot->txn_op = core_number(core);
    action->txn.compares = compares;
    action->txn.n_compares = n;
    action->txn.writes = w->writes;
    action->txn.n_writes = w->n;
}

/* Sends the writes with all removals if they fit together, else as many removals as fit: when etcd
 * has taken them the slot is looked at again (rollout_txn_done), and the rest follows. */
static void send_with_removals(core_t *core, slot_t *slot, const char *plan_key, writes_t *w)
{
    removals_t list = find_removals(core, slot, w);
    if (w->n + list.n <= TXN_OPS_MAX) {
        for (size_t i = 0; i < list.n; i++)
            add_write(core, w, list.keys[i], NULL, 0);
        send_txn(core, slot, plan_key, w);
        return;
    }
    if (!slot->removed)
        slot->removed = MEM_NEW_ARRAY(bool, slot->plan->n_ranks * 2);
    writes_t first = new_writes(core);
    for (size_t i = 0; i < list.n && first.n < TXN_OPS_MAX; i++) {
        add_write(core, &first, list.keys[i], NULL, 0);
        slot->removed[list.numbers[i]] = true;
    }
    slot->removing = true;
    send_txn(core, slot, plan_key, &first);
}

static void fill_ranks(core_t *core, const plan_placement_t *placed,
                       Shoal__Cluster__V1__ReplicaPlan *plan, uint32_t tp)
{
    arena_t *arena = &core->out->arena;
    plan->n_ranks = placed->n_ranks;
    plan->ranks = ARENA_NEW_ARRAY(arena, Shoal__Cluster__V1__RankPlan *, placed->n_ranks);
    for (uint32_t i = 0; i < placed->n_ranks; i++) {
        const plan_rank_t *from = &placed->ranks[i];
        Shoal__Cluster__V1__RankPlan *rank =
            ARENA_NEW_ARRAY(arena, Shoal__Cluster__V1__RankPlan, 1);
        shoal__cluster__v1__rank_plan__init(rank);
        rank->rank = from->stage * tp + from->slice;
        rank->stage = from->stage;
        rank->slice = from->slice;
        rank->host = core_copy(core, from->host);
        rank->layer_first = from->layer_first;
        rank->layer_count = from->layer_count;
        rank->threads = from->threads;
        plan->ranks[i] = rank;
    }
}

static void fill_plan(core_t *core, const slot_t *slot, const plan_placement_t *placed,
                      const plan_shape_t *shape, Shoal__Cluster__V1__ReplicaPlan *plan)
{
    const deployment_t *d = slot->deployment;
    shoal__cluster__v1__replica_plan__init(plan);
    plan->deployment = core_copy(core, d->name);
    plan->ordinal = slot->ordinal;
    plan->model_name = d->record->model_name;
    plan->model_digest = d->record->model_digest;
    plan->tp = shape->tp;
    plan->stages = shape->stages;
    plan->expert_groups = placed->cut.expert_groups;
    plan->attention_slices = placed->cut.attention_slices;
    plan->attention_replicas = placed->cut.attention_replicas;
    plan->shared_head = placed->shared_head;
    plan->context_max = d->record->context_max;
    plan->activations = d->record->activations;
    plan->quantize = d->record->quantize;
    plan->kv = d->record->kv;
    plan->draft_digest = d->record->draft_digest;
    plan->draft_bytes = d->record->draft_bytes;
    plan->kv_tokens_max = placed->kv_tokens;
    plan->kv_tokens_wanted = d->record->kv_tokens_max;
    plan->prefill_tokens_max = d->record->prefill_tokens_max;
    plan->speculate_max = d->record->speculate_max;
    plan->speculate_off = d->record->speculate_off;
    plan->prefix_cache_off = d->record->prefix_cache_off;
    plan->whole_prompts = d->record->whole_prompts;
    plan->incarnation = core->process.incarnation;
    /* The leader's rank reads its draft model after its own part. */
    uint64_t bytes = d->sizes->file_bytes + d->record->draft_bytes;
    plan->formation_deadline_ms = core->config.formation_ms + bytes / LOAD_BYTES_PER_MS;
    fill_ranks(core, placed, plan, shape->tp);
}

/* Plan and assignments of one replica are one transaction, or it would have two epochs; so a
 * replica over more hosts than a transaction has room for is refused. */
static status_t write_plan(core_t *core, slot_t *slot, const plan_placement_t *placed,
                           const plan_shape_t *shape)
{
    Shoal__Cluster__V1__ReplicaPlan plan;
    fill_plan(core, slot, placed, shape, &plan);
    size_t size = shoal__cluster__v1__replica_plan__get_packed_size(&plan);
    uint8_t *bytes = ARENA_NEW_ARRAY(&core->out->arena, uint8_t, size + 1);
    shoal__cluster__v1__replica_plan__pack(&plan, bytes);

    writes_t w = new_writes(core);
    char plan_key[CORE_NAME_SIZE * 2], key[CORE_NAME_SIZE * 3];
    snprintf(plan_key, sizeof plan_key, "replicas/%s/%u/plan", slot->deployment->name,
             slot->ordinal);
    add_write(core, &w, plan_key, bytes, size);
    for (uint32_t i = 0; i < placed->n_ranks; i++) {
        assign_key(slot, placed->ranks[i].host, key, sizeof key);
        if (has_write(&w, key))
            continue;
        if (w.n == TXN_OPS_MAX || (w.n + 1) * size > TXN_BYTES_MAX)
            return fail(STATUS_REFUSED,
                        "its %u ranks would lie on more than %zu hosts, which is what one "
                        "transaction of etcd can assign; use fewer ranks, or hosts that take more "
                        "of them",
                        placed->n_ranks, w.n - 1);
        add_write(core, &w, key, bytes, size);
    }
    send_with_removals(core, slot, plan_key, &w);
    return STATUS_OK;
}

bool plans_form(core_t *core, deployment_t *d, slot_t *slot)
{
    plan_placement_t *placed = ARENA_NEW_ARRAY(&core->out->arena, plan_placement_t, 1);
    plan_shape_t shape;
    status_t status = place(core, slot, &shape, placed);
    if (status == STATUS_OK)
        status = write_plan(core, slot, placed, &shape);
    if (status != STATUS_OK) {
        if (!d->message || strcmp(d->message, status_text()) != 0)
            core_log(core, LOG_WARN, "replica %s/%u cannot be formed: %s", d->name, slot->ordinal,
                     status_text());
        free(d->message);
        d->message = mem_strdup(status_text());
        return false;
    }
    free(d->message);
    d->message = NULL;
    return true;
}

void plans_remove(core_t *core, slot_t *slot)
{
    writes_t w = new_writes(core);
    char key[CORE_NAME_SIZE * 2];
    static const char *const names[] = {"active", "failed", "plan"};
    for (size_t i = 0; i < 3; i++) {
        snprintf(key, sizeof key, "replicas/%s/%u/%s", slot->deployment->name, slot->ordinal,
                 names[i]);
        add_write(core, &w, key, NULL, 0);
    }
    send_with_removals(core, slot, key, &w);
}
