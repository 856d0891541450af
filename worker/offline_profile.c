/* `shoal profile`: where the time of one prefill step and of one decode step goes, op by op and
 * rank by rank. The same request is run several times with traces on; the fastest steps are
 * shown. */
#include "worker/offline_profile.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/options.h"
#include "common/model/model.h"
#include "worker/engine/kv.h"
#include "worker/offline.h"

enum { ROUNDS = 4, GEN_MAX = 64 };

typedef struct {
    offline_replica_t replica;
    const char *out, *output;
    int64_t prompt, gen, batch;
    uint32_t vocab;
    profile_t profile;
    arena_t arena;
} run_t;

typedef struct {
    const run_t *run;
    uint32_t index;
} round_t;

static void make_prompt(void *context, uint32_t sequence, uint32_t *ids)
{
    const round_t *round = context;
    for (uint32_t i = 0; i < (uint32_t)round->run->prompt; i++) {
        uint32_t counter[4] = {i, sequence, round->index, 0}, random[4];
        philox4x32(counter, 1, random);
        ids[i] = random[0] % round->run->vocab;
    }
}

static status_t drive(void *context, offline_client_t *client)
{
    run_t *run = context;
    for (uint32_t i = 0; i < ROUNDS; i++) {
        round_t round = {run, i};
        offline_round_t sequences = {.n = (uint32_t)run->batch,
                                     .n_prompt = (uint32_t)run->prompt,
                                     .n_ids = (uint32_t)run->gen,
                                     .choice = i,
                                     .context = &round,
                                     .prompt = make_prompt};
        TRY(offline_round(client, &sequences));
    }
    return STATUS_OK;
}

static void rank_path(const run_t *run, uint32_t rank, char *path_out, size_t size)
{
    snprintf(path_out, size, "%s.%u", run->replica.trace_path, rank);
}

static status_t read_traces(run_t *run)
{
    profile_t *profile = &run->profile;
    for (uint32_t rank = 0; rank < profile->n_ranks; rank++) {
        char path[600];
        rank_path(run, rank, path, sizeof path);
        TRY(trace_read(path, &run->arena, &profile->events[rank], &profile->n_events[rank]));
    }
    return STATUS_OK;
}

/* The peaks that the threads of one rank reach together, with no other rank beside them. */
static status_t measure_peak(const run_t *run, kpeak_t *out)
{
    const kernel_ops_t *ops = kernels_cpu();
    kdevice_t *device;
    kdevice_options_t options = {.threads = offline_threads(&run->replica)};
    TRY(ops->device_open(&options, &device));
    status_t status = ops->device_peak(device, out);
    ops->device_close(device);
    return status;
}

static status_t profile_run(run_t *run)
{
    offline_replica_t *r = &run->replica;
    model_t *model;
    TRY(model_open(r->model_path, &model));
    run->vocab = model_config(model)->vocab;
    model_close(model);
    uint64_t tokens = (uint64_t)(run->prompt + run->gen);
    r->batch = run->batch;
    r->context_max = (uint32_t)tokens;
    r->kv_tokens_max = (tokens + 2 * KV_BLOCK_TOKENS) * (uint64_t)(run->batch * r->stages) +
                       64u * KV_BLOCK_TOKENS;
    r->no_prefix_cache = true;
    run->profile.n_ranks = (uint32_t)(r->tp * r->stages);
    TRY(measure_peak(run, &run->profile.peak));
    offline_work_t work = {.context = run, .drive = drive};
    TRY(offline_run(r, &work));
    TRY(read_traces(run));
    /* With several stages the sequences are dealt out to as many batches. */
    int64_t share = (run->batch + r->stages - 1) / r->stages;
    profile_choose(&run->profile, (uint32_t)(share < r->chunk ? share : r->chunk));
    profile_print(&run->profile, strcmp(run->output, "json") == 0, stdout);
    return run->out[0] ? profile_write(&run->profile, run->out) : STATUS_OK;
}

/* The ranks' traces lie in a directory of their own while this runs. */
static status_t profile_in_directory(run_t *run)
{
    const char *base = getenv("TMPDIR");
    char directory[400], path[600];
    snprintf(directory, sizeof directory, "%s/shoal-profile-XXXXXX",
             base && base[0] ? base : "/tmp");
    if (!mkdtemp(directory))
        return fail(STATUS_IO, "cannot make a directory like %s", directory);
    snprintf(path, sizeof path, "%s/rank", directory);
    run->replica.trace_path = path;
    status_t status = profile_run(run);
    for (uint32_t rank = 0; rank < run->profile.n_ranks; rank++) {
        char file[700];
        rank_path(run, rank, file, sizeof file);
        unlink(file);
    }
    rmdir(directory);
    return status;
}

int offline_profile(int argc, char **argv)
{
    run_t run = {0};
    offline_replica_t *r = &run.replica;
    const option_t options[] = {
        {"model", OPTION_TEXT, &r->model_path, NULL, "FILE", "the model", 0, 0, NULL},
        {"prompt", OPTION_INTEGER, &run.prompt, "512", "N", "tokens of each prompt", 1, 1e6, NULL},
        {"gen", OPTION_INTEGER, &run.gen, "16", "N", "tokens produced for each", 2, GEN_MAX, NULL},
        {"batch", OPTION_INTEGER, &run.batch, "1", "B", "sequences at once", 1, 64, NULL},
        {"tp", OPTION_INTEGER, &r->tp, "1", "T", "slices of each stage", 1, 16, NULL},
        {"stages", OPTION_INTEGER, &r->stages, "1", "S", "pipeline stages", 1, 64, NULL},
        {"head", OPTION_TEXT, &r->head, "auto", "auto|last|shared", OFFLINE_HEAD_HELP, 0, 0, NULL},
        {"threads", OPTION_INTEGER, &r->threads, "0", "N",
         "threads of each rank; 0 shares the cores out", 0, 1024, NULL},
        {"chunk", OPTION_INTEGER, &r->chunk, "512", "C", "tokens in one step at most", 1, 8192,
         NULL},
        {"activations", OPTION_TEXT, &r->activations, "native", "MODE", "native or f32", 0, 0,
         NULL},
        {"kv", OPTION_TEXT, &r->kv, "bf16", "bf16|int8|fp8", "how keys and values are kept", 0, 0,
         NULL},
        {"quantize", OPTION_TEXT, &r->quantize, "", "q8|q4|fp8",
         "quantize F32, F16 and BF16 weights as they are loaded", 0, 0, NULL},
        {"o", OPTION_TEXT, &run.output, "table", "table|json", "how to print", 0, 0, NULL},
        {"out", OPTION_TEXT, &run.out, "", "FILE", "also write a trace for chrome://tracing", 0, 0,
         NULL},
        {0},
    };
    const options_help_t help = {
        .usage = "shoal profile --model FILE [--prompt N] [--gen N] [--batch B] [options]",
        .about = "Shows where the time of one prefill step and of one decode step goes, on this "
                 "machine, without a cluster.",
        .example = "shoal profile --model SmolLM2.gguf --prompt 512 --threads 2 --out trace.json",
        .options = options,
    };
    size_t n_words = 0;
    bool want_help = false;
    status_t status = options_read(options, argc, argv, NULL, 0, &n_words, &want_help);
    if (want_help) {
        options_print_help(&help);
        return 0;
    }
    if (status == STATUS_OK && !r->model_path)
        status = fail(STATUS_INVALID, "--model is needed");
    if (status == STATUS_OK && strcmp(run.output, "table") != 0 && strcmp(run.output, "json") != 0)
        status = fail(STATUS_INVALID, "-o: \"%s\" is neither table nor json", run.output);
    if (status == STATUS_OK)
        status = profile_in_directory(&run);
    arena_release(&run.arena);
    return status == STATUS_OK ? 0 : offline_failed("shoal profile", status);
}
