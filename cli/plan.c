/* `shoal plan`: whether a model would fit on hosts that nobody has to own yet, in which shape, and
 * how fast it could be. It needs no weights and no cluster. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/command.h"
#include "cli/describe.h"
#include "cli/output.h"
#include "cli/plan_report.h"
#include "common/base/memory.h"
#include "common/model/footprint.h"
#include "common/model/kv_type.h"
#include "common/model/model_outline.h"

static const char note[] =
    "upper bounds from data sheets; each device takes one rank. The program serves CPUs today: "
    "GPUs are planned with, not yet computed on";

typedef struct {
    const char *draft_path;
    uint64_t draft_bytes;
    const char *model_path, *hosts_path, *quantize, *activations, *kv, *prefer;
    int64_t tp, stages, expert_groups, attention_slices, attention_replicas;
    int64_t context, prompt, batch;
} work_t;

enum { CONTEXT_DEFAULT = 8192 };

/* `quantize` may be NULL. */
static status_t open_model(const char *path, const char *quantize, model_t **own_out)
{
    model_t *model;
    TRY(model_outline_only(path) ? model_outline_open(path, &model) : model_open(path, &model));
    status_t status = quantize != NULL ? model_outline_quantize(model, quantize) : STATUS_OK;
    if (status != STATUS_OK) {
        model_close(model);
        return status;
    }
    *own_out = model;
    return STATUS_OK;
}

/* The type that most of the multiplying is done with. */
static qtype_t main_type(const model_t *model)
{
    static const model_role_t roles[] = {MODEL_EXPERT_DOWN, MODEL_FFN_DOWN, MODEL_ATTN_OUTPUT};
    uint32_t last = model_config(model)->n_layers - 1;
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++) {
        const model_tensor_t *tensor = model_tensor(model, roles[i], last);
        if (tensor != NULL)
            return tensor->type;
    }
    return QTYPE_BF16;
}

static uint32_t smaller(int64_t a, uint32_t b)
{
    return a < b ? (uint32_t)a : b;
}

/* What was typed is taken as it is, so that too much is refused in words; the default adapts. */
static uint32_t context_of(const work_t *work, uint32_t trained)
{
    return work->context != 0 ? (uint32_t)work->context : smaller(CONTEXT_DEFAULT, trained);
}

static void ask(const work_t *work, const model_t *model, const plan_sizes_t *sizes,
                forecast_question_t *out)
{
    uint32_t context = context_of(work, sizes->config.context_train);
    *out = (forecast_question_t){
        .sizes = sizes,
        .weights = main_type(model),
        .tp = (uint32_t)work->tp,
        .stages = (uint32_t)work->stages,
        .expert_groups = (uint32_t)work->expert_groups,
        .attention_slices = (uint32_t)work->attention_slices,
        .attention_replicas = (uint32_t)work->attention_replicas,
        .context = context,
        .prompt = smaller(work->prompt, context),
        .batch_max = (uint32_t)work->batch,
        .activations_f32 = strcmp(work->activations, "f32") == 0,
        .kv_codes = kv_type_is_codes(work->kv),
        .draft_bytes = work->draft_bytes,
        .latency = strcmp(work->prefer, "latency") == 0,
    };
}

/* Which online quantizations would make it fit on the hosts as they are. */
static void try_quantized(const work_t *work, const hosts_file_t *hosts, json_t *report)
{
    static const char *const names[] = {"q8", "fp8", "q4"};
    json_t *fitting = json_array();
    for (size_t i = 0; i < 3 && work->quantize == NULL; i++) {
        model_t *model;
        if (open_model(work->model_path, names[i], &model) != STATUS_OK)
            continue; /* it is quantized already */
        plan_sizes_t *sizes = MEM_NEW(plan_sizes_t);
        forecast_t *forecast = MEM_NEW(forecast_t);
        forecast_question_t question;
        plan_sizes(model, sizes);
        ask(work, model, sizes, &question);
        if (forecast_make(&question, hosts, forecast) == STATUS_OK && forecast->fits)
            json_array_append_new(fitting, json_string(names[i]));
        free(forecast);
        free(sizes);
        model_close(model);
    }
    json_object_set_new(report, "quantize_fits", fitting);
}

static json_t *describe_model(const model_t *model)
{
    footprint_t footprint;
    json_t *object = json_object();
    footprint_of_model(model, &footprint);
    json_object_set_new(object, "name", json_string(model_name(model)));
    describe_config(object, model_config(model));
    describe_footprint(object, &footprint);
    /* Of the files, which online quantization does not change: not what this is about. */
    json_object_del(object, "types");
    return object;
}

static status_t plan_model(const work_t *work, const model_t *model, const hosts_file_t *hosts,
                           json_t *report)
{
    plan_sizes_t *sizes = MEM_NEW(plan_sizes_t);
    forecast_t *forecast = MEM_NEW(forecast_t);
    forecast_question_t question;
    plan_sizes(model, sizes);
    status_t status = kv_type_check_model(work->kv, &sizes->config);
    ask(work, model, sizes, &question);
    if (status == STATUS_OK)
        status = forecast_make(&question, hosts, forecast);
    if (status == STATUS_OK) {
        json_object_set_new(report, "model", describe_model(model));
        if (work->quantize != NULL)
            json_object_set_new(report, "quantize", json_string(work->quantize));
        plan_report_forecast(report, &question, hosts, forecast);
        json_object_set_new(report, "note", json_string(note));
    }
    if (status == STATUS_OK && !forecast->fits) {
        forecast_advice_t advice;
        forecast_advise(&question, hosts, forecast, &advice);
        plan_report_advice(report, &advice);
        try_quantized(work, hosts, report);
        status = fail(STATUS_REFUSED, "it does not fit: %s", forecast->reason);
    }
    free(forecast);
    free(sizes);
    return status;
}

/* What the draft model takes beside the first rank. */
static status_t size_draft(work_t *work, const model_t *model)
{
    model_t *draft;
    if (work->draft_path == NULL)
        return STATUS_OK;
    TRY(open_model(work->draft_path, NULL, &draft));
    plan_sizes_t *sizes = MEM_NEW(plan_sizes_t);
    plan_sizes(draft, sizes);
    status_t status = STATUS_OK;
    if (sizes->config.vocab != model_config(model)->vocab)
        status = fail(STATUS_INVALID,
                      "--draft-model: it has %u tokens and the model has %u: a draft model has the "
                      "tokenizer of the model that it drafts for", sizes->config.vocab,
                      model_config(model)->vocab);
    if (status == STATUS_OK)
        status = plan_draft_bytes(sizes, context_of(work, model_config(model)->context_train),
                                  &work->draft_bytes);
    free(sizes);
    model_close(draft);
    return status;
}

static status_t plan(work_t *work, bool json)
{
    model_t *model;
    hosts_file_t hosts;
    if (work->model_path == NULL || work->hosts_path == NULL)
        return fail(STATUS_INVALID, "give --model PATH and --hosts FILE");
    if (strcmp(work->prefer, "throughput") != 0 && strcmp(work->prefer, "latency") != 0)
        return fail(STATUS_INVALID, "--prefer: \"%s\" is neither throughput nor latency",
                    work->prefer);
    if (strcmp(work->activations, "native") != 0 && strcmp(work->activations, "f32") != 0)
        return fail(STATUS_INVALID, "--activations: \"%s\" is neither native nor f32",
                    work->activations);
    TRY(kv_type_check(work->kv, strcmp(work->activations, "f32") == 0));
    if (work->tp == 0 && (work->expert_groups != 0 || work->attention_slices != 0 ||
                          work->attention_replicas > 1))
        return fail(STATUS_INVALID, "--expert-groups, --attention-slices and --attention-replicas "
                    "are of one tp; give --tp too");
    TRY(hosts_file_read(work->hosts_path, &hosts));
    status_t status = open_model(work->model_path, work->quantize, &model);
    if (status == STATUS_OK) {
        json_t *report = json_object();
        status = size_draft(work, model);
        if (status == STATUS_OK)
            status = plan_model(work, model, &hosts, report);
        model_close(model);
        if (json_object_size(report) > 0 && json)
            output_json(report, false);
        else if (json_object_size(report) > 0)
            plan_report_print(report);
        json_decref(report);
    }
    hosts_file_release(&hosts);
    return status;
}

static const char about[] =
    "Says whether a model fits on given hosts, in which shape (tp and stages are chosen when not\n"
    "given), what each rank holds, and the tokens per second that hardware allows at most. The\n"
    "model is a GGUF file, a Hugging Face directory, or a config.json alone. The exit code is 4\n"
    "when it does not fit; what would make it fit is then said.\n\n"
    "FILE names hosts, links in one direction, and devices:\n"
    "  {\"hosts\": [{\"name\": \"node\", \"count\": 2, \"link_gb_s\": 50, \"link_us\": 10,\n"
    "              \"devices\": [{\"name\": \"H100-80\", \"count\": 8}]}]}\n"
    "A device may give memory_gib, reserve_gib (of that, what ranks cannot have), bandwidth_gb_s,\n"
    "tflops {f32, bf16, fp8, int8}, link_gb_s and link_us (to the others of its host); one whose\n"
    "name is not known must. Known:\n";

status_t command_plan(int argc, char **argv)
{
    const char *format;
    work_t work = {0};
    const option_t options[] = {
        {"model", OPTION_TEXT, &work.model_path, NULL, "PATH", "the model, or its config.json"},
        {"draft-model", OPTION_TEXT, &work.draft_path, NULL, "PATH",
         "a draft model, which the first rank's device holds as well"},
        {"hosts", OPTION_TEXT, &work.hosts_path, NULL, "FILE", "the hosts, as above"},
        {"tp", OPTION_INTEGER, &work.tp, "0", "N", "slices of a stage; 0 chooses", 0, PLAN_TP_MAX,
         NULL},
        {"stages", OPTION_INTEGER, &work.stages, "0", "N", "stages; 0 chooses", 0,
         PLAN_STAGES_MAX, NULL},
        {"expert-groups", OPTION_INTEGER, &work.expert_groups, "0", "G",
         "groups of slices, each with whole experts of its own; 0 chooses", 0, PLAN_TP_MAX, NULL},
        {"attention-slices", OPTION_INTEGER, &work.attention_slices, "0", "A",
         "slices that hold attention and its KV; 0: all", 0, PLAN_TP_MAX, NULL},
        {"attention-replicas", OPTION_INTEGER, &work.attention_replicas, "1", "R",
         "replicas of attention among those, each with the KV of its own sequences", 1,
         PLAN_TP_MAX, NULL},
        {"context", OPTION_INTEGER, &work.context, "0", "N",
         "positions of a sequence; 0 takes 8192, or what the model was trained for", 0,
         MODEL_CONTEXT_MAX, NULL},
        {"prompt", OPTION_INTEGER, &work.prompt, "1024", "N", "tokens of a prompt", 1,
         MODEL_CONTEXT_MAX, NULL},
        {"batch", OPTION_INTEGER, &work.batch, "64", "N",
         "sequences that decode together, at most", 1, 65536, NULL},
        {"quantize", OPTION_TEXT, &work.quantize, NULL, "q8|q4|fp8",
         "quantize the matrices of layers at load"},
        {"activations", OPTION_TEXT, &work.activations, "native", "native|f32",
         "f32 keeps weights and cache in F32"},
        {"kv", OPTION_TEXT, &work.kv, "bf16", "bf16|int8|fp8", "how keys and values are kept"},
        {"prefer", OPTION_TEXT, &work.prefer, "throughput", "throughput|latency",
         "most tokens on all devices together, or one sequence fastest"},
        OUTPUT_OPTION(&format),
        {0},
    };
    char *whole = mem_format("%s%s.", about, hosts_device_names());
    const options_help_t help = {"shoal plan --model PATH --hosts FILE [options]", whole,
                                 "shoal plan --model DeepSeek-V3/config.json --hosts hosts.json",
                                 options};
    bool done = false, json = false;
    status_t status = command_options(&help, argc, argv, NULL, 0, 0, NULL, &done);
    free(whole);
    if (status != STATUS_OK || done)
        return status;
    TRY(output_format(format, &json));
    return plan(&work, json);
}
