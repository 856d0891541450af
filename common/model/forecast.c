/* Shapes, devices and time. See forecast.h. */
#include "common/model/forecast.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
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

/* What the members of a stage send each other: a part from each to each. The devices of a host
 * carry it at once; a host's own link carries all that its members get from other hosts. */
static double exchange_s(const hosts_file_t *hosts, const uint32_t *devices, uint32_t tp,
                         const double *part_bytes)
{
    double slowest = 0, from_others[PLAN_TP_MAX] = {0};
    if (tp == 1)
        return 0;
    for (uint32_t i = 0; i < tp; i++) {
        const hosts_device_t *device = &hosts->devices[devices[i]];
        double near = 0;
        for (uint32_t k = 0; k < tp; k++) {
            bool same = hosts->host_of[devices[i]] == hosts->host_of[devices[k]];
            near += k != i && same ? part_bytes[k] : 0;
            from_others[i] += same ? 0 : part_bytes[k];
        }
        double s = near > 0 ? near / device->link_bytes_s + device->link_s : 0;
        slowest = s > slowest ? s : slowest;
    }
    for (uint32_t i = 0; i < tp; i++) {
        const hosts_host_t *host = &hosts->hosts[hosts->host_of[devices[i]]];
        double bytes = 0;
        for (uint32_t k = 0; k < tp; k++)
            if (hosts->host_of[devices[i]] == hosts->host_of[devices[k]])
                bytes += from_others[k];
        double s = bytes > 0 ? bytes / host->link_bytes_s + host->link_s : 0;
        slowest = s > slowest ? s : slowest;
    }
    return slowest;
}

/* A sum over the members of a stage: whole or by pieces, whatever these links do sooner. */
static double sum_s(const hosts_file_t *hosts, const uint32_t *devices, uint32_t tp,
                    const double *part_bytes, double elements)
{
    double pieces[PLAN_TP_MAX], sums[PLAN_TP_MAX];
    for (uint32_t i = 0; i < tp; i++) {
        pieces[i] = part_bytes[i] / tp;
        sums[i] = sizeof(float) * elements / tp;
    }
    double whole_s = exchange_s(hosts, devices, tp, part_bytes);
    double pieces_s = exchange_s(hosts, devices, tp, pieces) + exchange_s(hosts, devices, tp, sums);
    return whole_s < pieces_s ? whole_s : pieces_s;
}

/* Each slice passes its copy of the rows to the same slice of the next stage. */
static double pass_s(const hosts_file_t *hosts, const uint32_t *from, const uint32_t *to,
                     uint32_t tp, double bytes)
{
    double slowest = 0;
    for (uint32_t i = 0; i < tp; i++) {
        const hosts_device_t *device = &hosts->devices[from[i]];
        const hosts_host_t *host = &hosts->hosts[hosts->host_of[from[i]]];
        uint32_t together = 0;
        bool near = hosts->host_of[from[i]] == hosts->host_of[to[i]];
        for (uint32_t k = 0; k < tp; k++)
            together += hosts->host_of[from[k]] == hosts->host_of[from[i]] &&
                        hosts->host_of[to[k]] != hosts->host_of[from[k]];
        double s = near ? bytes / device->link_bytes_s + device->link_s
                        : together * bytes / host->link_bytes_s + host->link_s;
        slowest = s > slowest ? s : slowest;
    }
    return slowest;
}

/* Slice 0 of the last stage gets the columns of all others. */
static double gather_s(const hosts_file_t *hosts, const uint32_t *devices, uint32_t tp,
                       const plan_slice_t *slices, uint32_t rows)
{
    const hosts_device_t *device = &hosts->devices[devices[0]];
    const hosts_host_t *host = &hosts->hosts[hosts->host_of[devices[0]]];
    double near = 0, far = 0;
    for (uint32_t i = 1; i < tp; i++) {
        double bytes = 4.0 * rows * slices[i].vocab.count;
        if (hosts->host_of[devices[i]] == hosts->host_of[devices[0]])
            near += bytes;
        else
            far += bytes;
    }
    double near_s = near > 0 ? near / device->link_bytes_s + device->link_s : 0;
    double far_s = far > 0 ? far / host->link_bytes_s + host->link_s : 0;
    return near_s > far_s ? near_s : far_s;
}

static double stage_links_s(const forecast_question_t *question, const hosts_file_t *hosts,
                            const forecast_t *forecast, uint32_t stage, const plan_slice_t *slices,
                            const roofline_step_t *step)
{
    const model_config_t *config = &question->sizes->config;
    uint32_t tp = forecast->shape.tp;
    const uint32_t *devices = forecast->devices + stage * tp;
    double parts[PLAN_TP_MAX], seconds = 0, elements = (double)step->rows * config->hidden;
    for (uint32_t i = 0; i < forecast->layers[stage].count && tp > 1; i++) {
        uint32_t layer = forecast->layers[stage].first + i;
        for (uint32_t s = 0; s < tp; s++)
            parts[s] = roofline_partial_bytes_attention(
                config, &slices[s], roofline_rows_of_replica(&forecast->shape, step, step->rows));
        /* Several replicas of attention exchange the partials of their rows whole. */
        seconds += forecast->shape.attention_replicas > 1
                       ? exchange_s(hosts, devices, tp, parts)
                       : sum_s(hosts, devices, tp, parts, elements);
        for (uint32_t s = 0; s < tp; s++)
            parts[s] = roofline_partial_bytes_ffn(config, &slices[s], layer, step->rows);
        seconds += sum_s(hosts, devices, tp, parts, elements);
        for (int second = 0; second < 2; second++) {
            for (uint32_t s = 0; s < tp; s++)
                parts[s] = roofline_projection_bytes(config, &slices[s], layer, second != 0,
                                                     step->rows);
            seconds += exchange_s(hosts, devices, tp, parts);
        }
    }
    if (stage + 1 < forecast->shape.stages)
        return seconds + pass_s(hosts, devices, devices + tp, tp,
                                4.0 * step->rows * model_residual(config));
    return seconds + gather_s(hosts, devices, tp, slices, step->logit_rows);
}

static void time_step(const forecast_question_t *question, const hosts_file_t *hosts,
                      const forecast_t *forecast, const plan_slice_t *slices,
                      const roofline_step_t *step, forecast_time_t *out)
{
    const plan_shape_t *shape = &forecast->shape;
    *out = (forecast_time_t){0};
    for (uint32_t stage = 0; stage < shape->stages; stage++) {
        forecast_time_t stage_time = {0};
        double slowest = 0;
        for (uint32_t s = 0; s < shape->tp; s++) {
            const hosts_device_t *device =
                &hosts->devices[forecast->devices[stage * shape->tp + s]];
            roofline_work_t work;
            roofline_work(question->sizes, shape, forecast->layers, stage, &slices[s], step, &work);
            double compute = work.flops / hosts_flops_s(device, question->weights);
            double memory = (work.weight_bytes + work.kv_bytes) / device->memory_bytes_s;
            double larger = compute > memory ? compute : memory;
            if (larger > slowest) {
                slowest = larger;
                stage_time.compute_s = compute;
                stage_time.memory_s = memory;
            }
        }
        stage_time.link_s = stage_links_s(question, hosts, forecast, stage, slices, step);
        stage_time.stage_s = slowest + stage_time.link_s;
        stage_time.all_s = out->all_s + stage_time.stage_s;
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
    bounds_t tp = bounds_of(question->tp, min_u32(config->n_heads, PLAN_TP_MAX));
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
