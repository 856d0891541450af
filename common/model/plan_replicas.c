/* Ranks on hosts. See plan.h for the order of preference; everything here is a function of the
 * world it is given, so two coordinators with the same view make the same plan. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/model/plan.h"

/* Where the search for several hosts begins: so many hosts of the order at most, which bounds the
 * work at 10,000 hosts. */
enum { STARTS_MAX = 64, LEVEL_FREE = 0 };

/* One host as the search sees it. */
typedef struct {
    const plan_host_t *host;
    uint32_t ranks;            /* that stand there */
    uint32_t deployment_ranks; /* of those, this deployment's */
    uint32_t threads;          /* of those that stand there */
    uint64_t memory_free;
    bool usable; /* has the model and does not drain */
    /* The attempt at hand. */
    uint32_t taken_ranks;
    uint64_t taken_memory;
} seat_t;

/* What the ranks need, and their layers. */
typedef struct {
    plan_need_t needs[PLAN_RANKS_MAX];
    plan_run_t layers[PLAN_STAGES_MAX];
    uint64_t least[PLAN_RANKS_MAX]; /* bytes of a rank with plan_kv_tokens_needed() */
} parts_t;

typedef struct {
    const plan_world_t *world;
    const plan_request_t *request;
    parts_t own_head, on_one; /* with the head on the last stage, and as it is on one host */
    const parts_t *parts;     /* of the attempt at hand */
    bool large_head;          /* which the stages share on one host */
    uint32_t n_ranks;
    seat_t *seats; /* in order of preference; the usable ones come first */
    size_t n_usable;
    size_t chosen[PLAN_RANKS_MAX]; /* index of seats */
    uint32_t n_chosen;
    uint32_t level;      /* ranks a core, or LEVEL_FREE */
    plan_cut_t cut;      /* being tried */
    bool allow_suspects;
} search_t;

/* --- the hosts --- */

static int compare_ids(const void *a, const void *b)
{
    const seat_t *left = a, *right = b;
    return strcmp(left->host->id, right->host->id);
}

static uint32_t cores_free(const seat_t *seat)
{
    return seat->host->cores > seat->threads ? seat->host->cores - seat->threads : 0;
}

static int compare_preference(const void *a, const void *b)
{
    const seat_t *left = a, *right = b;
    if (left->usable != right->usable)
        return left->usable ? -1 : 1;
    if (left->deployment_ranks != right->deployment_ranks)
        return left->deployment_ranks < right->deployment_ranks ? -1 : 1;
    if (cores_free(left) != cores_free(right))
        return cores_free(left) > cores_free(right) ? -1 : 1;
    if (left->memory_free != right->memory_free)
        return left->memory_free > right->memory_free ? -1 : 1;
    return compare_ids(a, b);
}

static bool has_model(const plan_host_t *host, const char *digest)
{
    for (size_t i = 0; i < host->n_model_digests; i++)
        if (strcmp(host->model_digests[i], digest) == 0)
            return true;
    return false;
}

static void count_existing(search_t *search)
{
    const plan_world_t *world = search->world;
    for (size_t i = 0; i < world->n_existing; i++) {
        const plan_existing_t *rank = &world->existing[i];
        plan_host_t wanted = {.id = rank->host};
        seat_t key = {.host = &wanted};
        seat_t *seat =
            bsearch(&key, search->seats, world->n_hosts, sizeof *search->seats, compare_ids);
        if (seat == NULL)
            continue; /* its host is gone, and with it what it used */
        seat->ranks++;
        seat->threads += rank->threads;
        seat->deployment_ranks += strcmp(rank->deployment, search->request->deployment) == 0;
        seat->memory_free -=
            rank->memory_bytes < seat->memory_free ? rank->memory_bytes : seat->memory_free;
    }
}

static void seat_hosts(search_t *search)
{
    const plan_world_t *world = search->world;
    search->seats = MEM_NEW_ARRAY(seat_t, world->n_hosts);
    for (size_t i = 0; i < world->n_hosts; i++) {
        const plan_host_t *host = &world->hosts[i];
        search->seats[i] = (seat_t){.host = host, .memory_free = host->memory_bytes};
        search->seats[i].usable =
            !host->draining && host->cores > 0 && has_model(host, search->request->model_digest);
        search->n_usable += search->seats[i].usable;
    }
    qsort(search->seats, world->n_hosts, sizeof *search->seats, compare_ids);
    count_existing(search);
    qsort(search->seats, world->n_hosts, sizeof *search->seats, compare_preference);
}

/* --- one attempt --- */

static void start_attempt(search_t *search, const parts_t *parts)
{
    search->parts = parts;
    for (uint32_t rank = 0; rank < search->n_chosen; rank++) {
        search->seats[search->chosen[rank]].taken_ranks = 0;
        search->seats[search->chosen[rank]].taken_memory = 0;
    }
    search->n_chosen = 0;
}

/* Ranks that a host takes in all, at this level. */
static uint64_t capacity(const search_t *search, const seat_t *seat)
{
    if (search->level == LEVEL_FREE)
        return cores_free(seat);
    uint64_t all = (uint64_t)seat->host->cores * search->level;
    return all > seat->ranks ? all - seat->ranks : 0;
}

static bool is_avoided(const search_t *search, const char *a, const char *b)
{
    for (size_t i = 0; i < search->world->n_avoided; i++) {
        const plan_host_pair_t *pair = &search->world->avoided[i];
        if ((strcmp(pair->a, a) == 0 && strcmp(pair->b, b) == 0) ||
            (strcmp(pair->a, b) == 0 && strcmp(pair->b, a) == 0))
            return true;
    }
    return false;
}

static bool links_live(const search_t *search, size_t seat)
{
    for (uint32_t rank = 0; search->world->n_avoided != 0 && rank < search->n_chosen; rank++)
        if (search->chosen[rank] != seat &&
            is_avoided(search, search->seats[search->chosen[rank]].host->id,
                       search->seats[seat].host->id))
            return false;
    return true;
}

/* Whether the host can carry ranks [first, first + n) on top of what this attempt gave it. */
static bool can_take(const search_t *search, size_t index, uint32_t first, uint32_t n)
{
    const seat_t *seat = &search->seats[index];
    if (!seat->usable || (seat->host->suspect && !search->allow_suspects))
        return false;
    if (seat->taken_ranks + (uint64_t)n > capacity(search, seat))
        return false;
    uint64_t bytes = seat->taken_memory;
    for (uint32_t rank = first; rank < first + n; rank++)
        bytes += search->parts->least[rank];
    return bytes <= seat->memory_free && links_live(search, index);
}

static void take(search_t *search, size_t index, uint32_t n)
{
    for (; n > 0; n--) {
        uint32_t rank = search->n_chosen++;
        search->chosen[rank] = index;
        search->seats[index].taken_ranks++;
        search->seats[index].taken_memory += search->parts->least[rank];
    }
}

static bool try_one_host(search_t *search)
{
    start_attempt(search, &search->on_one);
    for (size_t i = 0; i < search->n_usable; i++)
        if (can_take(search, i, 0, search->n_ranks)) {
            take(search, i, search->n_ranks);
            return true;
        }
    return false;
}

/* Puts the next n ranks on one host: the first from *at on (wrapping) that can take them, so that
 * neighbours stay together. */
static bool take_next(search_t *search, size_t *at, uint32_t n)
{
    for (size_t step = 0; step < search->n_usable; step++) {
        size_t index = (*at + step) % search->n_usable;
        if (can_take(search, index, search->n_chosen, n)) {
            take(search, index, n);
            *at = index;
            return true;
        }
    }
    return false;
}

static bool try_several_hosts(search_t *search)
{
    uint32_t tp = search->request->shape.tp;
    size_t n_starts = search->n_usable < STARTS_MAX ? search->n_usable : STARTS_MAX;
    for (size_t start = 0; start < n_starts; start++) {
        start_attempt(search, &search->own_head);
        size_t at = start;
        bool placed = true;
        while (placed && search->n_chosen < search->n_ranks) {
            if (take_next(search, &at, tp))
                continue;
            for (uint32_t slice = 0; slice < tp && placed; slice++)
                placed = take_next(search, &at, 1);
        }
        if (placed)
            return true;
    }
    return false;
}

/* --- pinned ranks --- */

static status_t take_pinned(search_t *search, const char *id)
{
    uint32_t rank = search->n_chosen;
    for (size_t i = 0; i < search->world->n_hosts; i++) {
        const seat_t *seat = &search->seats[i];
        if (strcmp(seat->host->id, id) != 0)
            continue;
        if (can_take(search, i, rank, 1)) {
            take(search, i, 1);
            return STATUS_OK;
        }
        const char *why = seat->host->draining ? "it drains"
                          : !seat->usable      ? "it does not have the model"
                          : !links_live(search, i) ? "its link to another host of the plan is dead"
                                                   : "it lacks memory or cores";
        return fail(STATUS_REFUSED, "%s/%u: rank %u is pinned to host %s, but %s",
                    search->request->deployment, search->request->ordinal, rank, id, why);
    }
    return fail(STATUS_REFUSED, "%s/%u: rank %u is pinned to host %s, which is not there",
                search->request->deployment, search->request->ordinal, rank, id);
}

static bool pinned_to_one_host(const search_t *search)
{
    const char *const *ids = search->request->pinned_hosts;
    for (uint32_t rank = 0; rank < search->n_ranks; rank++)
        if (ids[rank] == NULL || strcmp(ids[rank], ids[0]) != 0)
            return false;
    return true;
}

static status_t place_pinned(search_t *search)
{
    size_t at = 0;
    search->level = PLAN_RANKS_PER_CORE_MAX;
    search->allow_suspects = true;
    start_attempt(search, pinned_to_one_host(search) ? &search->on_one : &search->own_head);
    while (search->n_chosen < search->n_ranks) {
        uint32_t rank = search->n_chosen;
        const char *id = search->request->pinned_hosts[rank];
        if (id != NULL)
            TRY(take_pinned(search, id));
        else if (!take_next(search, &at, 1))
            return fail(STATUS_REFUSED, "%s/%u: no host can take rank %u beside the pinned ones",
                        search->request->deployment, search->request->ordinal, rank);
    }
    return STATUS_OK;
}

/* --- the whole search --- */

static bool place_free(search_t *search)
{
    static const uint32_t levels[] = {LEVEL_FREE, 1, 2, 4, 8, PLAN_RANKS_PER_CORE_MAX};
    for (int suspects = 0; suspects < 2; suspects++) {
        search->allow_suspects = suspects != 0;
        for (size_t i = 0; i < sizeof levels / sizeof *levels; i++) {
            search->level = levels[i];
            if (try_one_host(search) || try_several_hosts(search))
                return true;
        }
    }
    return false;
}

static status_t explain(const search_t *search)
{
    const plan_request_t *request = search->request;
    size_t n_with_model = 0, n_draining = 0;
    const seat_t *widest = NULL;
    for (size_t i = 0; i < search->world->n_hosts; i++) {
        const seat_t *seat = &search->seats[i];
        bool has = has_model(seat->host, request->model_digest);
        n_with_model += has;
        n_draining += has && seat->host->draining;
        if (seat->usable && (widest == NULL || seat->memory_free > widest->memory_free))
            widest = seat;
    }
    if (n_with_model == 0)
        return fail(STATUS_REFUSED, "%s/%u: none of %zu hosts has model %s", request->deployment,
                    request->ordinal, search->world->n_hosts, request->model_digest);
    if (widest == NULL)
        return fail(STATUS_REFUSED, "%s/%u: %zu of %zu hosts with the model drain, the others "
                    "offer no core", request->deployment, request->ordinal, n_draining,
                    n_with_model);
    uint64_t sum = 0, largest = 0;
    for (uint32_t rank = 0; rank < search->n_ranks; rank++) {
        uint64_t least = search->own_head.least[rank];
        sum += least;
        largest = least > largest ? least : largest;
    }
    return fail(STATUS_REFUSED,
                "%s/%u: no placing on %zu hosts with the model (%zu drain, %zu dead links): %u "
                "ranks need %llu MiB in all and up to %llu MiB each for weights, work space and "
                "%s of %u tokens; the most free host is %s with %llu MiB and %u cores "
                "for at most %d ranks each",
                request->deployment, request->ordinal, n_with_model, n_draining,
                search->world->n_avoided, search->n_ranks, (unsigned long long)(sum >> 20),
                (unsigned long long)(largest >> 20),
                search->cut.attention_replicas > 1 ? "a sequence" : "two sequences",
                request->shape.context_max, widest->host->id,
                (unsigned long long)(widest->memory_free >> 20), widest->host->cores,
                PLAN_RANKS_PER_CORE_MAX);
}

/* --- the answer --- */

static uint64_t kv_tokens_of(const search_t *search)
{
    uint64_t tokens = plan_kv_tokens_wanted(&search->request->sizes->config,
                                            &search->request->shape);
    uint32_t pools = search->cut.attention_replicas;
    for (uint32_t i = 0; i < search->n_ranks; i++) {
        plan_need_t all = {.kv_pools = pools};
        for (uint32_t rank = 0; rank < search->n_ranks; rank++)
            if (search->chosen[rank] == search->chosen[i]) {
                all.fixed += search->parts->needs[rank].fixed;
                all.kv_per_token += search->parts->needs[rank].kv_per_token;
            }
        uint64_t room =
            plan_kv_tokens(&all, search->seats[search->chosen[i]].memory_free - all.fixed);
        tokens = room < tokens ? room : tokens;
    }
    return tokens / pools / PLAN_KV_BLOCK * PLAN_KV_BLOCK * pools;
}

/* A rank's threads: its share of the host's cores, when the deployment's replicas lie evenly over
 * the hosts that can take them. */
static uint32_t threads_of(const search_t *search, const seat_t *seat)
{
    if (search->request->threads != 0)
        return search->request->threads;
    uint32_t replicas = search->request->replicas ? search->request->replicas : 1;
    uint64_t here = (replicas + search->n_usable - 1) / search->n_usable;
    uint64_t cores = seat->host->cores / here;
    if (search->level == LEVEL_FREE && cores > cores_free(seat))
        cores = cores_free(seat);
    uint64_t threads = cores / seat->taken_ranks;
    return threads < 1 ? 1 : (uint32_t)threads;
}

static void answer(const search_t *search, plan_placement_t *out)
{
    uint32_t tp = search->request->shape.tp;
    *out = (plan_placement_t){
        .n_ranks = search->n_ranks, .kv_tokens = kv_tokens_of(search), .cut = search->cut,
        .shared_head = search->large_head && search->parts == &search->on_one};
    for (uint32_t rank = 0; rank < search->n_ranks; rank++) {
        const seat_t *seat = &search->seats[search->chosen[rank]];
        uint32_t stage = rank / tp, threads = threads_of(search, seat);
        out->ranks[rank] = (plan_rank_t){
            .stage = stage,
            .slice = rank % tp,
            .host = seat->host->id,
            .layer_first = search->parts->layers[stage].first,
            .layer_count = search->parts->layers[stage].count,
            .threads = threads,
            .memory_bytes = search->parts->needs[rank].fixed +
                            plan_kv_bytes(&search->parts->needs[rank], out->kv_tokens),
        };
        if ((uint64_t)seat->threads + (uint64_t)threads * seat->taken_ranks > seat->host->cores)
            out->oversubscribed = true;
    }
}

static status_t set_parts(const plan_request_t *request, const plan_shape_t *shape, parts_t *out)
{
    TRY(plan_needs(request->sizes, shape, out->needs, out->layers));
    for (uint32_t rank = 0; rank < shape->tp * shape->stages; rank++)
        out->least[rank] =
            out->needs[rank].fixed +
            plan_kv_bytes(&out->needs[rank],
                          plan_kv_tokens_needed(&request->sizes->config, shape));
    return STATUS_OK;
}

/* What each rank needs in this cut. */
static status_t set_cut(search_t *search, const plan_cut_t *cut)
{
    const plan_request_t *request = search->request;
    plan_shape_t shape = request->shape;
    shape.expert_groups = cut->expert_groups;
    shape.attention_slices = cut->attention_slices;
    shape.attention_replicas = cut->attention_replicas;
    shape.shared_head = false;
    search->cut = *cut;
    search->n_ranks = shape.tp * shape.stages;
    TRY(set_parts(request, &shape, &search->own_head));
    search->large_head = plan_head_is_large(request->sizes, shape.stages);
    shape.shared_head = search->large_head;
    return set_parts(request, &shape, &search->on_one);
}

static status_t place_cut(search_t *search)
{
    if (search->request->pinned_hosts != NULL)
        return place_pinned(search);
    return place_free(search) ? STATUS_OK : explain(search);
}

status_t plan_replica(const plan_world_t *world, const plan_request_t *request,
                      plan_placement_t *out)
{
    plan_cut_t cuts[PLAN_CUTS_MAX];
    uint32_t n_cuts = 0;
    search_t *search = MEM_NEW(search_t);
    search->world = world;
    search->request = request;
    status_t status = plan_cuts(&request->sizes->config, &request->shape, cuts, &n_cuts);
    if (status == STATUS_OK)
        status = set_cut(search, &cuts[0]);
    if (status != STATUS_OK) {
        free(search);
        return fail_in(status, "%s/%u", request->deployment, request->ordinal);
    }
    seat_hosts(search);
    status = place_cut(search);
    for (uint32_t i = 1; status == STATUS_REFUSED && search->n_usable > 0 && i < n_cuts; i++) {
        status = set_cut(search, &cuts[i]);
        if (status == STATUS_OK)
            status = place_cut(search);
    }
    if (status == STATUS_OK)
        answer(search, out);
    free(search->seats);
    free(search);
    return status;
}

size_t plan_replicas(const plan_world_t *world, const plan_request_t *requests, size_t n,
                     plan_placement_t *placements_out, status_t *statuses_out,
                     char **own_reasons_out)
{
    size_t n_placed = 0, n_existing = world->n_existing, capacity_existing = 0;
    plan_existing_t *existing = NULL;
    MEM_GROW(existing, capacity_existing, n_existing + 1);
    if (n_existing > 0)
        memcpy(existing, world->existing, n_existing * sizeof *existing);
    for (size_t i = 0; i < n; i++) {
        plan_world_t now = *world;
        now.existing = existing;
        now.n_existing = n_existing;
        statuses_out[i] = plan_replica(&now, &requests[i], &placements_out[i]);
        if (own_reasons_out != NULL)
            own_reasons_out[i] = statuses_out[i] ? mem_strdup(status_text()) : NULL;
        if (statuses_out[i] != STATUS_OK)
            continue;
        n_placed++;
        const plan_placement_t *placed = &placements_out[i];
        MEM_GROW(existing, capacity_existing, n_existing + placed->n_ranks);
        for (uint32_t rank = 0; rank < placed->n_ranks; rank++)
            existing[n_existing++] = (plan_existing_t){
                .host = placed->ranks[rank].host,
                .deployment = requests[i].deployment,
                .ordinal = requests[i].ordinal,
                .threads = placed->ranks[rank].threads,
                .memory_bytes = placed->ranks[rank].memory_bytes,
            };
    }
    free(existing);
    return n_placed;
}
