/* See plan_report.h. */
#include "cli/plan_report.h"

#include <stdio.h>
#include <string.h>

#include "cli/describe.h"
#include "cli/output.h"

static void set_integer(json_t *object, const char *key, uint64_t value)
{
    json_object_set_new(object, key, json_integer((json_int_t)value));
}

static void set_real(json_t *object, const char *key, double value)
{
    json_object_set_new(object, key, json_real(value));
}

/* "0-29", or "-" for none: what people read of a run. */
static void set_run(json_t *object, const char *key, plan_run_t run)
{
    char text[32] = "-";
    if (run.count > 0)
        snprintf(text, sizeof text, "%u-%u", run.first, run.first + run.count - 1);
    json_object_set_new(object, key, json_string(text));
}

static json_t *rank_of(const forecast_question_t *question, const hosts_file_t *hosts,
                       const forecast_t *forecast, uint32_t rank)
{
    const plan_shape_t *shape = &forecast->shape;
    const plan_need_t *need = &forecast->needs[rank];
    const hosts_device_t *device = &hosts->devices[forecast->devices[rank]];
    const hosts_host_t *host = &hosts->hosts[hosts->host_of[forecast->devices[rank]]];
    plan_slice_t slice;
    json_t *row = json_object();
    plan_cut_t cut = plan_shape_cut(shape);
    CHECK(plan_slice(&question->sizes->config, &cut, rank % shape->tp, &slice) == STATUS_OK);
    set_integer(row, "rank", rank);
    set_integer(row, "stage", rank / shape->tp);
    set_integer(row, "slice", rank % shape->tp);
    json_object_set_new(row, "host", json_string(host->name));
    json_object_set_new(row, "device", json_string(device->name));
    set_run(row, "layers", forecast->layers[rank / shape->tp]);
    set_run(row, "heads", slice.heads);
    set_run(row, "ffn", slice.ffn);
    if (question->sizes->config.experts.n > 0) {
        set_run(row, "experts", slice.experts);
        set_run(row, "expert_ffn", slice.expert_ffn);
    }
    set_integer(row, "weight_bytes", need->weights);
    set_integer(row, "work_bytes", need->scratch + need->process);
    if (need->draft > 0)
        set_integer(row, "draft_bytes", need->draft);
    set_integer(row, "kv_bytes_per_token", need->kv_per_token);
    set_integer(row, "kv_bytes", plan_kv_bytes(need, forecast->kv_tokens));
    set_integer(row, "device_bytes", device->memory_bytes - device->reserve_bytes);
    return row;
}

static json_t *time_of(const forecast_time_t *time, double tokens_s)
{
    json_t *object = json_object();
    double larger = time->compute_s > time->memory_s ? time->compute_s : time->memory_s;
    const char *bound = time->link_s > larger             ? "links"
                        : time->compute_s > time->memory_s ? "compute"
                                                          : "memory";
    set_real(object, "tokens_s", tokens_s);
    json_object_set_new(object, "bound", json_string(bound));
    set_real(object, "compute_ms", 1e3 * time->compute_s);
    set_real(object, "memory_ms", 1e3 * time->memory_s);
    set_real(object, "link_ms", 1e3 * time->link_s);
    set_real(object, "stage_ms", 1e3 * time->stage_s);
    set_real(object, "all_stages_ms", 1e3 * time->all_s);
    return object;
}

void plan_report_forecast(json_t *report, const forecast_question_t *question,
                          const hosts_file_t *hosts, const forecast_t *forecast)
{
    const plan_shape_t *shape = &forecast->shape;
    json_t *ranks = json_array();
    json_object_set_new(report, "fits", json_boolean(forecast->fits));
    set_integer(report, "tp", shape->tp);
    set_integer(report, "stages", shape->stages);
    if (question->sizes->config.experts.n > 0)
        set_integer(report, "expert_groups", shape->expert_groups);
    set_integer(report, "attention_slices", shape->attention_slices);
    set_integer(report, "attention_replicas", shape->attention_replicas);
    set_integer(report, "head_stages", shape->shared_head ? shape->stages : 1);
    set_integer(report, "context", shape->context_max);
    set_integer(report, "devices", hosts->n_devices);
    set_integer(report, "hosts", hosts->n_hosts);
    for (uint32_t i = 0; i < shape->tp * shape->stages; i++)
        json_array_append_new(ranks, rank_of(question, hosts, forecast, i));
    json_object_set_new(report, "ranks", ranks);
    if (!forecast->fits) {
        json_object_set_new(report, "reason", json_string(forecast->reason));
        return;
    }
    set_integer(report, "replicas", forecast->replicas);
    set_integer(report, "kv_tokens", forecast->kv_tokens);
    set_integer(report, "kv_sequences", forecast->sequences);
    set_integer(report, "batch", forecast->batch);
    set_integer(report, "prompt", question->prompt);
    json_t *roofline = json_object();
    json_object_set_new(roofline, "decode_one", time_of(&forecast->one, forecast->one_tokens_s));
    json_object_set_new(roofline, "decode_batch", time_of(&forecast->many,
                                                          forecast->many_tokens_s));
    json_object_set_new(roofline, "prefill", time_of(&forecast->prefill,
                                                     forecast->prefill_tokens_s));
    set_real(roofline, "first_token_ms", 1e3 * forecast->first_token_s);
    json_object_set_new(report, "roofline", roofline);
}

void plan_report_advice(json_t *report, const forecast_advice_t *advice)
{
    json_t *object = json_object();
    set_integer(object, "device_bytes", advice->device_bytes);
    if (advice->devices > 0) {
        set_integer(object, "devices", advice->devices);
        set_integer(object, "tp", advice->tp);
        set_integer(object, "stages", advice->stages);
    }
    if (advice->context > 0)
        set_integer(object, "context", advice->context);
    json_object_set_new(report, "advice", object);
}

/* --- lines --- */

static uint64_t integer(const json_t *object, const char *key)
{
    return (uint64_t)json_integer_value(json_object_get(object, key));
}

static double real(const json_t *object, const char *key)
{
    return json_number_value(json_object_get(object, key));
}

static void print_advice(const json_t *report)
{
    char text[DESCRIBE_TEXT_SIZE];
    const json_t *advice = json_object_get(report, "advice");
    const json_t *quantize = json_object_get(report, "quantize_fits");
    size_t i;
    const json_t *name;
    if (advice == NULL)
        return;
    describe_line("it would fit", "on devices of %s in this shape",
                  describe_bytes(integer(advice, "device_bytes"), text));
    if (json_object_get(advice, "devices") != NULL)
        describe_line("", "on %llu of the largest device (tp %llu x %llu stages)",
                      (unsigned long long)integer(advice, "devices"),
                      (unsigned long long)integer(advice, "tp"),
                      (unsigned long long)integer(advice, "stages"));
    if (json_object_get(advice, "context") != NULL)
        describe_line("", "here with --context %llu",
                      (unsigned long long)integer(advice, "context"));
    json_array_foreach(quantize, i, name)
        describe_line("", "here with --quantize %s", json_string_value(name));
}

static void print_time(const char *name, const json_t *time, const char *what)
{
    describe_line(name, "%.4g tokens/s at most, bound by %s (%s: compute %.3g ms, memory %.3g ms, "
                  "links %.3g ms)", real(time, "tokens_s"),
                  json_string_value(json_object_get(time, "bound")), what,
                  real(time, "compute_ms"), real(time, "memory_ms"), real(time, "link_ms"));
}

static void print_speed(const json_t *report)
{
    const json_t *roofline = json_object_get(report, "roofline");
    char name[48];
    describe_line("KV cache", "%llu tokens a replica: %llu sequences of %llu",
                  (unsigned long long)integer(report, "kv_tokens"),
                  (unsigned long long)integer(report, "kv_sequences"),
                  (unsigned long long)integer(report, "context"));
    print_time("prefill", json_object_get(roofline, "prefill"), "slowest stage");
    describe_line("first token", "%.4g ms behind a prompt of %llu",
                  real(roofline, "first_token_ms"),
                  (unsigned long long)integer(report, "prompt"));
    print_time("decode, one", json_object_get(roofline, "decode_one"), "slowest stage");
    snprintf(name, sizeof name, "decode, %llu", (unsigned long long)integer(report, "batch"));
    print_time(name, json_object_get(roofline, "decode_batch"), "slowest stage");
}

void plan_report_print(const json_t *report)
{
    static const char *const columns[] = {"rank", "stage", "slice", "host", "device", "layers",
                                          "heads", "ffn", "experts", "expert_ffn", "weight_bytes",
                                          "work_bytes", "kv_bytes", "device_bytes"};
    bool fits = json_is_true(json_object_get(report, "fits"));
    describe_print(json_object_get(report, "model"));
    if (json_object_get(report, "quantize") != NULL)
        describe_line("quantized to", "%s", json_string_value(json_object_get(report, "quantize")));
    describe_line("fits", "%s%s", fits ? "yes" : "no: ",
                  fits ? "" : json_string_value(json_object_get(report, "reason")));
    describe_line("shape", "tp %llu x %llu stages of %llu devices on %llu hosts; replicas that "
                  "find room: %llu", (unsigned long long)integer(report, "tp"),
                  (unsigned long long)integer(report, "stages"),
                  (unsigned long long)integer(report, "devices"),
                  (unsigned long long)integer(report, "hosts"),
                  (unsigned long long)integer(report, "replicas"));
    if (json_object_get(report, "expert_groups") != NULL)
        describe_line("experts", "%llu groups of %llu slices: whole experts between them, leaves "
                      "of each inside", (unsigned long long)integer(report, "expert_groups"),
                      (unsigned long long)(integer(report, "tp") /
                                           integer(report, "expert_groups")));
    if (integer(report, "attention_slices") < integer(report, "tp"))
        describe_line("attention", "on %llu of %llu slices",
                      (unsigned long long)integer(report, "attention_slices"),
                      (unsigned long long)integer(report, "tp"));
    if (integer(report, "head_stages") > 1)
        describe_line("head", "shared by all %llu stages",
                      (unsigned long long)integer(report, "head_stages"));
    if (integer(report, "attention_replicas") > 1)
        describe_line("replicas", "%llu of attention, each with the cache of its own sequences",
                      (unsigned long long)integer(report, "attention_replicas"));
    if (fits)
        print_speed(report);
    else
        print_advice(report);
    describe_line("note", "%s", json_string_value(json_object_get(report, "note")));
    putchar('\n');
    output_table(columns, sizeof columns / sizeof *columns, json_object_get(report, "ranks"));
}
