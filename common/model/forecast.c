/* Shapes, devices and time. See forecast.h. */
#include "common/model/forecast.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/model/forecast_links.h"
#include "common/model/roofline.h"

/* --- devices of ranks --- */

typedef struct {
    const hosts_file_t *hosts;
    bool *taken; /* by device */
} places_t;

/* The devices of one stage: of one host where a host has so many left, else, when no host has so
 * many at all, of several. */
static bool place_stage(places_t *places, uint32_t tp, uint32_t *devices_out)
{
    const hosts_file_t *hosts = places->hosts;
    uint32_t most = 0, n = 0;
    for (uint32_t h = 0; h < hosts->n_hosts; h++) {
        const hosts_host_t *host = &hosts->hosts[h];
        n = 0;
        most = host->n_devices > most ? host->n_devices : most;
        for (uint32_t i = 0; i < host->n_devices && n < tp; i++)
            if (!places->taken[host->device_first + i])
                devices_out[n++] = host->device_first + i;
        if (n == tp)
            break;
    }
    if (n < tp && tp <= most)
        return false;
    if (n < tp) {
        n = 0;
        for (uint32_t i = 0; i < hosts->n_devices && n < tp; i++)
            if (!places->taken[i])
                devices_out[n++] = i;
    }
    for (uint32_t i = 0; n == tp && i < tp; i++)
        places->taken[devices_out[i]] = true;
    return n == tp;
}

static bool place_replica(places_t *places, const plan_shape_t *shape, uint32_t *devices_out)
{
    for (uint32_t s = 0; s < shape->stages; s++)
        if (!place_stage(places, shape->tp, devices_out + s * shape->tp))
            return false;
    return true;
}

/* The devices of the first replica, and how many replicas there is room for. */
static uint32_t place(const hosts_file_t *hosts, const plan_shape_t *shape, uint32_t *devices_out)
{
    uint32_t n = 0, others[PLAN_RANKS_MAX];
    places_t places = {hosts, MEM_NEW_ARRAY(bool, hosts->n_devices)};
    while (place_replica(&places, shape, n == 0 ? devices_out : others))
        n++;
    free(places.taken);
    return n;
}

/* --- memory --- */

static uint64_t usable(const hosts_file_t *hosts, uint32_t device)
{
    return hosts->devices[device].memory_bytes - hosts->devices[device].reserve_bytes;
}

static status_t fit(const forecast_question_t *question, const hosts_file_t *hosts,
                    forecast_t *out)
{
    const plan_shape_t *shape = &out->shape;
    uint64_t memory[PLAN_RANKS_MAX];
    uint32_t n = shape->tp * shape->stages;
    TRY(plan_needs(question->sizes, shape, out->needs, out->layers));
    for (uint32_t i = 0; i < n; i++) {
        const plan_need_t *need = &out->needs[i];
        uint64_t tokens = plan_kv_tokens_needed(&question->sizes->config, shape);
        uint64_t least = need->fixed + plan_kv_bytes(need, tokens) +
                         hosts->devices[out->devices[i]].reserve_bytes;
        memory[i] = usable(hosts, out->devices[i]);
        out->device_bytes_least = least > out->device_bytes_least ? least : out->device_bytes_least;
    }
    status_t status = plan_fit(question->sizes, shape, memory, &out->kv_tokens);
    if (status != STATUS_OK && status != STATUS_REFUSED)
        return status;
    out->fits = status == STATUS_OK;
    if (!out->fits)
        snprintf(out->reason, sizeof out->reason, "%s", status_text());
    return STATUS_OK;
}

/* The first cut that fits; of none the last, which lacks least. Devices share no memory, so that
 * fewer of them with attention would help nobody. */
static status_t fit_cut(const forecast_question_t *question, const hosts_file_t *hosts,
                        forecast_t *out)
{
    plan_cut_t cuts[PLAN_CUTS_MAX];
    uint32_t n = 0;
    TRY(plan_cuts(&question->sizes->config, &out->shape, cuts, &n));
    for (uint32_t i = 0; i < n && !out->fits; i++) {
        if (cuts[i].attention_slices != cuts[0].attention_slices)
            break;
        out->shape.expert_groups = cuts[i].expert_groups;
        out->shape.attention_slices = cuts[i].attention_slices;
        out->shape.attention_replicas = cuts[i].attention_replicas;
        out->device_bytes_least = 0;
        TRY(fit(question, hosts, out));
    }
    return STATUS_OK;
}

/* --- time --- */

/* The slowest slice of a stage, and what takes its time. */
static double work_s(const forecast_question_t *question, const hosts_file_t *hosts,
                     const forecast_t *forecast, uint32_t stage, const plan_slice_t *slices,
                     const roofline_step_t *step, forecast_time_t *out)
{
    const plan_shape_t *shape = &forecast->shape;
    double slowest = 0;
    for (uint32_t s = 0; s < shape->tp; s++) {
        const hosts_device_t *device = &hosts->devices[forecast->devices[stage * shape->tp + s]];
        roofline_work_t work;
        roofline_work(question->sizes, shape, forecast->layers, stage, s, &slices[s], step, &work);
        double compute = work.flops / hosts_flops_s(device, question->weights);
        double memory = (work.weight_bytes + work.kv_bytes) / device->memory_bytes_s;
        double larger = compute > memory ? compute : memory;
        if (larger > slowest) {
            slowest = larger;
            out->compute_s = compute;
            out->memory_s = memory;
        }
    }
    return slowest;
}

static void time_step(const forecast_question_t *question, const hosts_file_t *hosts,
                      const forecast_t *forecast, const plan_slice_t *slices,
                      const roofline_step_t *step, forecast_time_t *out)
{
    const plan_shape_t *shape = &forecast->shape;
    *out = (forecast_time_t){0};
    for (uint32_t stage = 0; stage < shape->stages; stage++) {
        forecast_time_t stage_time = {0}, layers = {0};
        roofline_step_t no_head = *step;
        double all = work_s(question, hosts, forecast, stage, slices, step, &stage_time);
        no_head.logit_rows = 0;
        double alone = work_s(question, hosts, forecast, stage, slices, &no_head, &layers);
        stage_time.link_s = forecast_links_s(question, hosts, forecast, stage, slices, step);
        stage_time.stage_s = all + stage_time.link_s;
        /* Parts of the head are made on all stages at once. */
        stage_time.all_s = out->all_s + stage_time.link_s +
                           (stage + 1 < shape->stages ? alone : all);
        if (stage_time.stage_s > out->stage_s)
            *out = stage_time;
        out->all_s = stage_time.all_s;
    }
}

/* `n` batches go round through the stages, one behind the other: in the time of a round each makes
 * a step. */
static double round_s(const forecast_time_t *time, uint32_t n)
{
    double slowest = n * time->stage_s;
    return slowest > time->all_s ? slowest : time->all_s;
}

static uint32_t parts_of(uint32_t n, uint32_t size)
{
    return (n + size - 1) / size;
}

static void time_all(const forecast_question_t *question, const hosts_file_t *hosts,
                     forecast_t *out)
{
    const plan_shape_t *shape = &out->shape;
    plan_slice_t slices[PLAN_TP_MAX];
    plan_cut_t cut = plan_shape_cut(shape);
    for (uint32_t s = 0; s < shape->tp; s++)
        CHECK(plan_slice(&question->sizes->config, &cut, s, &slices[s]) == STATUS_OK);
    uint32_t pools = shape->attention_replicas;
    /* Of a sequence, in whole tiles; none has its blocks in two pools. */
    uint64_t one = plan_kv_tokens_needed(&question->sizes->config, shape) / (pools > 2 ? pools : 2);
    out->sequences = (uint32_t)(out->kv_tokens / pools / one) * pools;
    out->batch = out->sequences < question->batch_max ? out->sequences : question->batch_max;

    roofline_step_t step = {1, 1, question->context, 1};
    time_step(question, hosts, out, slices, &step, &out->one);
    out->one_tokens_s = 1 / out->one.all_s;

    uint32_t n = out->batch < shape->stages ? out->batch : shape->stages;
    uint32_t rows = parts_of(out->batch, n);
    step = (roofline_step_t){rows, rows, question->context, rows};
    time_step(question, hosts, out, slices, &step, &out->many);
    out->many_tokens_s = out->batch / round_s(&out->many, n);

    uint32_t n_pieces = parts_of(question->prompt, PLAN_STEP_ROWS);
    rows = parts_of(question->prompt, n_pieces);
    step = (roofline_step_t){rows, 1, (question->prompt + 1) / 2, 0};
    time_step(question, hosts, out, slices, &step, &out->prefill);
    out->prefill_tokens_s = rows / out->prefill.stage_s;
    out->first_token_s = out->prefill.all_s + (n_pieces - 1) * out->prefill.stage_s;
}

/* --- the choice --- */

static status_t try_shape(const forecast_question_t *question, const hosts_file_t *hosts,
                          uint32_t tp, uint32_t stages, bool timed, forecast_t *out)
{
    *out = (forecast_t){
        .shape = {.tp = tp,
                  .stages = stages,
                  .context_max = question->context,
                  .activations_f32 = question->activations_f32,
                  .kv_codes = question->kv_codes,
                  .draft_bytes = question->draft_bytes,
                  .expert_groups = question->expert_groups,
                  .attention_slices = question->attention_slices,
                  .attention_replicas = question->attention_replicas,
                  .kv_tokens_max = 1ull << 40 /* all that memory holds */},
    };
    out->replicas = place(hosts, &out->shape, out->devices);
    if (out->replicas == 0)
        return fail(STATUS_REFUSED, "tp %u x %u stages needs %u devices, of which the %u of each "
                    "stage lie in one host or in hosts that have fewer; there are %u devices on "
                    "%u hosts",
                    tp, stages, tp * stages, tp, hosts->n_devices, hosts->n_hosts);
    bool near = true;
    for (uint32_t i = 1; i < tp * stages; i++)
        near = near && hosts->host_of[out->devices[i]] == hosts->host_of[out->devices[0]];
    out->shape.shared_head = near && plan_head_is_large(question->sizes, stages);
    TRY(fit_cut(question, hosts, out));
    if (out->fits && timed)
        time_all(question, hosts, out);
    return STATUS_OK;
}

/* Whether `a` is the better of two. A thousandth is no difference: then fewer devices are better,
 * so that more is left for others. */
static bool is_better(const forecast_question_t *question, const forecast_t *a, const forecast_t *b)
{
    uint32_t n_a = a->shape.tp * a->shape.stages, n_b = b->shape.tp * b->shape.stages;
    if (a->fits != b->fits)
        return a->fits;
    if (!a->fits)
        return a->device_bytes_least < b->device_bytes_least;
    double left = question->latency ? a->one_tokens_s : a->many_tokens_s * a->replicas;
    double right = question->latency ? b->one_tokens_s : b->many_tokens_s * b->replicas;
    if (fabs(left - right) > 1e-3 * right)
        return left > right;
    return n_a < n_b;
}

typedef struct {
    uint32_t first, last;
} bounds_t;

static bounds_t bounds_of(uint32_t given, uint32_t max)
{
    return given != 0 ? (bounds_t){given, given} : (bounds_t){1, max};
}

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* Ranks that there must be at least: together they hold every weight. 0 when that says nothing. */
static uint64_t ranks_least(const forecast_question_t *question, const hosts_file_t *hosts)
{
    plan_shape_t shape = {.tp = 1, .stages = 1, .context_max = question->context,
                          .activations_f32 = question->activations_f32,
                          .kv_codes = question->kv_codes};
    plan_need_t whole;
    uint64_t largest = 1;
    if (plan_need(question->sizes, &shape, 0, 0, &whole) != STATUS_OK)
        return 0;
    for (uint32_t i = 0; i < hosts->n_devices; i++)
        largest = usable(hosts, i) > largest ? usable(hosts, i) : largest;
    return whole.weights / largest;
}

/* With `any`, the first shape that fits is enough and nothing is timed; shapes that are hopeless
 * are not looked at, since cutting the layers of each takes its time. */
static status_t search(const forecast_question_t *question, const hosts_file_t *hosts, bool any,
                       forecast_t *out)
{
    const model_config_t *config = &question->sizes->config;
    bounds_t stages = bounds_of(question->stages, min_u32(config->n_layers, PLAN_STAGES_MAX));
    bounds_t tp = bounds_of(question->tp, min_u32(config->n_heads, plan_tp_max(config)));
    uint32_t n_max = min_u32(hosts->n_devices, PLAN_RANKS_MAX);
    if (tp.last > PLAN_TP_MAX || stages.last > PLAN_STAGES_MAX ||
        (uint64_t)tp.first * stages.first > PLAN_RANKS_MAX)
        return fail(STATUS_INVALID, "tp %u x %u stages; a replica has tp up to %d, up to %d stages "
                    "and up to %d ranks", tp.first, stages.first, PLAN_TP_MAX, PLAN_STAGES_MAX,
                    PLAN_RANKS_MAX);
    forecast_t *found = MEM_NEW(forecast_t);
    status_t status = STATUS_OK;
    bool have = false, chosen = question->tp != 0 && question->stages != 0;
    uint64_t n_min = any ? ranks_least(question, hosts) : 0;
    for (uint32_t s = stages.first; s <= stages.last && status == STATUS_OK; s++)
        for (uint32_t t = tp.first; t <= tp.last && status == STATUS_OK; t++) {
            bool odd = any && question->tp == 0 && (t & (t - 1)) != 0; /* nobody would be told so */
            if (odd || s * t < n_min || (!chosen && s * t > n_max))
                continue;
            status = try_shape(question, hosts, t, s, !any, found);
            if (status == STATUS_REFUSED && !chosen) {
                status = STATUS_OK; /* these devices cannot be cut so */
                continue;
            }
            if (status == STATUS_OK && (!have || is_better(question, found, out)))
                *out = *found;
            have = have || status == STATUS_OK;
            if (any && have && out->fits)
                s = stages.last, t = tp.last;
        }
    free(found);
    if (status == STATUS_OK && !have)
        status = fail(STATUS_REFUSED, "%u devices are too few for %u slices and %u stages",
                      hosts->n_devices, tp.first, stages.first);
    return status;
}

status_t forecast_make(const forecast_question_t *question, const hosts_file_t *hosts,
                       forecast_t *out)
{
    return search(question, hosts, false, out);
}

/* --- advice --- */

/* Whether n devices are enough in some shape. */
static bool enough(const forecast_question_t *question, const hosts_file_t *hosts, forecast_t *out)
{
    return search(question, hosts, true, out) == STATUS_OK && out->fits;
}

static void advise_devices(const forecast_question_t *question, const hosts_file_t *hosts,
                           forecast_t *scratch, forecast_advice_t *out)
{
    uint32_t largest = 0;
    for (uint32_t i = 1; i < hosts->n_devices; i++)
        if (usable(hosts, i) > usable(hosts, largest))
            largest = i;
    forecast_question_t open = *question;
    open.tp = open.stages = open.expert_groups = open.attention_slices = 0;
    /* Counts that people buy: 1, 2, 3, 4, 6, 8, 12, 16, 24, … */
    for (uint32_t n = 1, step = 1; n <= PLAN_RANKS_MAX; n += step) {
        hosts_file_t more;
        hosts_file_alike(hosts, largest, n, &more);
        bool fits = enough(&open, &more, scratch);
        hosts_file_release(&more);
        if (fits) {
            out->devices = n;
            out->tp = scratch->shape.tp;
            out->stages = scratch->shape.stages;
            return;
        }
        if (n >= 4 && (n & (n - 1)) == 0)
            step = n / 2;
    }
}

void forecast_advise(const forecast_question_t *question, const hosts_file_t *hosts,
                     const forecast_t *forecast, forecast_advice_t *out)
{
    forecast_t *scratch = MEM_NEW(forecast_t);
    *out = (forecast_advice_t){.device_bytes = forecast->device_bytes_least};
    advise_devices(question, hosts, scratch, out);
    /* Contexts in whole tiles; memory grows with each, so halving the range finds the longest. */
    uint32_t low = 0, high = question->context / PLAN_KV_BLOCK;
    while (low < high) {
        forecast_question_t shorter = *question;
        uint32_t middle = low + (high - low + 1) / 2;
        shorter.context = middle * PLAN_KV_BLOCK;
        shorter.prompt = min_u32(shorter.prompt, shorter.context);
        if (enough(&shorter, hosts, scratch))
            low = middle;
        else
            high = middle - 1;
    }
    out->context = low * PLAN_KV_BLOCK;
    free(scratch);
}
