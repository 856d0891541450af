/* `shoal bench`: tokens per second of prefill and of decode, medians over repetitions. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/memory.h"
#include "common/base/options.h"
#include "common/model/model.h"
#include "worker/engine/kv.h"
#include "worker/offline.h"

#define CASES_MAX 16u
#define REPEATS_MAX 64u

typedef struct {
    offline_replica_t replica;
    const char *batches, *output;
    int64_t prompt, gen, repeats;
    int64_t period; /* prompts repeat their first ids; 0: they do not */
    int64_t shared; /* percent of each prompt that is in the prefix cache; -1: there is none */

    uint32_t vocab;
    uint32_t cases[CASES_MAX];
    uint32_t n_cases;
    uint32_t batch;                                   /* of the case in work */
    double prefill[REPEATS_MAX], decode[REPEATS_MAX]; /* tokens/s */
    double first_ms[REPEATS_MAX];                     /* until each had its first token */
    scheduler_load_t load;                            /* of all repetitions */
} bench_t;

static status_t read_batches(bench_t *bench)
{
    const char *at = bench->batches;
    while (*at) {
        char *end;
        long value = strtol(at, &end, 10);
        if (end == at || value < 1 || value > 64 || (*end != ',' && *end != 0) ||
            bench->n_cases == CASES_MAX)
            return fail(STATUS_INVALID,
                        "--batch is \"%s\"; it must be up to %u numbers from 1 to 64 with "
                        "commas between",
                        bench->batches, CASES_MAX);
        bench->cases[bench->n_cases++] = (uint32_t)value;
        at = *end ? end + 1 : end;
    }
    return bench->n_cases ? STATUS_OK
                          : fail(STATUS_INVALID, "--batch is empty; 1,8,16 would be right");
}

static uint32_t n_shared(const bench_t *bench)
{
    return bench->shared > 0 ? (uint32_t)(bench->prompt * bench->shared / 100) : 0;
}

/* Ids without meaning, different in each sequence and repetition but for what they share. */
static void make_prompt(const bench_t *bench, uint32_t repeat, uint32_t index, uint32_t *ids)
{
    for (uint32_t i = 0; i < (uint32_t)bench->prompt; i++) {
        bool own = i >= n_shared(bench);
        uint32_t at = bench->period > 0 ? i % (uint32_t)bench->period : i;
        uint32_t counter[4] = {at, own ? index : 0, own ? repeat : 0, !own}, random[4];
        philox4x32(counter, 1, random);
        ids[i] = random[0] % bench->vocab;
    }
}

static double per_second(uint64_t n, uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? (double)n * 1e9 / (double)(to_ns - from_ns) : 0;
}

typedef struct {
    const bench_t *bench;
    uint32_t repeat;
    uint32_t n_started; /* sequences that have a token */
    uint64_t started_ns; /* when all had; 0 until then */
    uint64_t produced, produced_at_start;
} repeat_t;

static void prompt_of(void *context, uint32_t sequence, uint32_t *ids)
{
    const repeat_t *repeat = context;
    make_prompt(repeat->bench, repeat->repeat, sequence, ids);
}

static void count(void *context, const sequence_output_t *out)
{
    repeat_t *repeat = context;
    repeat->n_started += out->n_ids > 0 && out->first_position == 0;
    repeat->produced += out->n_ids;
    if (repeat->started_ns == 0 && repeat->n_started == repeat->bench->batch) {
        repeat->started_ns = clock_ns();
        repeat->produced_at_start = repeat->produced;
    }
}

/* One repetition: all sequences admitted at once. Prefill ends when the last of them has its first
 * token; what is produced after that counts as decode. */
static status_t repeat_once(bench_t *bench, offline_client_t *client, uint32_t index)
{
    repeat_t repeat = {.bench = bench, .repeat = index};
    uint32_t n_prompt = (uint32_t)bench->prompt;
    offline_round_t round = {.n = bench->batch,
                             .n_prompt = n_prompt,
                             .n_ids = (uint32_t)bench->gen,
                             .choice = index,
                             .context = &repeat,
                             .prompt = prompt_of,
                             .taken = count};
    uint64_t begin_ns = clock_ns();
    TRY(offline_round(client, &round));
    bench->first_ms[index] = (double)(repeat.started_ns - begin_ns) / 1e6;
    bench->prefill[index] =
        per_second((uint64_t)bench->batch * n_prompt, begin_ns, repeat.started_ns);
    bench->decode[index] =
        per_second(repeat.produced - repeat.produced_at_start, repeat.started_ns, clock_ns());
    return STATUS_OK;
}

/* One prompt before all others, whose beginning they find in the prefix cache. */
static status_t warm_up(const bench_t *bench, offline_client_t *client)
{
    uint32_t *ids = MEM_NEW_ARRAY(uint32_t, (size_t)bench->prompt);
    make_prompt(bench, UINT32_MAX, 0, ids);
    admission_t admission = {.session = "warm",
                             .owner = 1,
                             .prompt = ids,
                             .n_prompt = (uint32_t)bench->prompt,
                             .sampling = sampling_default,
                             .max_tokens = 1,
                             .logits_from = LOGITS_NONE};
    offline_admit(client, &admission);
    free(ids);
    sequence_output_t out;
    do
        offline_next(client, &out);
    while (out.end == END_NONE);
    return out.end == END_FINISHED ? STATUS_OK
                                   : fail(STATUS_REPLICA_LOST, "warming up: %s", out.error);
}

static status_t drive(void *context, offline_client_t *client)
{
    bench_t *bench = context;
    if (n_shared(bench) > 0)
        TRY(warm_up(bench, client));
    for (uint32_t i = 0; i < (uint32_t)bench->repeats; i++)
        TRY(repeat_once(bench, client, i));
    offline_load(client, &bench->load);
    return STATUS_OK;
}

static int compare_numbers(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *values, size_t n)
{
    qsort(values, n, sizeof *values, compare_numbers);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

static status_t run_case(bench_t *bench, uint32_t batch)
{
    uint64_t tokens = (uint64_t)(bench->prompt + bench->gen);
    bench->batch = batch;
    bench->replica.batch = batch;
    bench->replica.context_max = (uint32_t)tokens;
    bench->replica.kv_tokens_max =
        (tokens + 2 * KV_BLOCK_TOKENS) * (batch * (uint64_t)bench->replica.stages + 1) +
        64u * KV_BLOCK_TOKENS;
    offline_work_t work = {.context = bench, .drive = drive};
    TRY(offline_run(&bench->replica, &work));
    double prefill = median(bench->prefill, (size_t)bench->repeats);
    double decode = median(bench->decode, (size_t)bench->repeats);
    double first_ms = median(bench->first_ms, (size_t)bench->repeats);
    const offline_replica_t *r = &bench->replica;
    const scheduler_load_t *load = &bench->load;
    if (strcmp(bench->output, "json") == 0)
        printf("{\"batch\":%u,\"threads\":%lld,\"tp\":%lld,\"stages\":%lld,"
               "\"prefill_tokens_per_s\":%.2f,\"decode_tokens_per_s\":%.2f,"
               "\"first_token_ms\":%.3f,\"steps\":%" PRIu64 ",\"guessed\":%" PRIu64
               ",\"guessed_right\":%" PRIu64 ",\"drafted\":%" PRIu64 ",\"drafted_right\":%" PRIu64
               ",\"draft_ms\":%.3f}\n",
               batch, (long long)offline_threads(r), (long long)r->tp, (long long)r->stages,
               prefill, decode, first_ms, load->steps, load->drafted_tokens,
               load->accepted_tokens, load->model_drafted_tokens, load->model_accepted_tokens,
               (double)load->draft_ns / 1e6);
    else
        printf("%5u %7lld %3lld %6lld %16.1f %15.1f\n", batch, (long long)offline_threads(r),
               (long long)r->tp, (long long)r->stages, prefill, decode);
    if (strcmp(bench->output, "json") != 0 && bench->shared >= 0)
        printf("%5s first token after %.2f ms\n", "", first_ms);
    if (strcmp(bench->output, "json") != 0 && r->speculate > 0)
        printf("%5s %" PRIu64 " tokens guessed, %" PRIu64 " right; %" PRIu64 " steps for %" PRIu64
               " tokens\n",
               "", load->drafted_tokens, load->accepted_tokens, load->steps, load->tokens_produced);
    if (strcmp(bench->output, "json") != 0 && r->draft_path)
        printf("%5s of these %" PRIu64 " by the draft model, %" PRIu64 " right, in %.1f ms\n", "",
               load->model_drafted_tokens, load->model_accepted_tokens,
               (double)load->draft_ns / 1e6);
    fflush(stdout);
    return STATUS_OK;
}

static status_t run(bench_t *bench)
{
    model_t *model;
    TRY(read_batches(bench));
    TRY(model_open(bench->replica.model_path, &model));
    bench->vocab = model_config(model)->vocab;
    model_close(model);
    /* Equal prompts must not be found in the cache, unless it is what is measured. */
    bench->replica.no_prefix_cache = bench->shared < 0;
    if (strcmp(bench->output, "json") != 0)
        printf("BATCH THREADS  TP STAGES  PREFILL_TOKENS/S DECODE_TOKENS/S\n");
    for (uint32_t i = 0; i < bench->n_cases; i++)
        TRY(run_case(bench, bench->cases[i]));
    return STATUS_OK;
}

int offline_bench(int argc, char **argv)
{
    bench_t bench = {0};
    offline_replica_t *r = &bench.replica;
    const option_t options[] = {
        {"model", OPTION_TEXT, &r->model_path, NULL, "FILE", "the GGUF file", 0, 0, NULL},
        {"prompt", OPTION_INTEGER, &bench.prompt, "512", "N", "tokens of each prompt", 1, 1e6,
         NULL},
        {"gen", OPTION_INTEGER, &bench.gen, "128", "N", "tokens produced for each", 2, 1e6, NULL},
        {"batch", OPTION_TEXT, &bench.batches, "1,8,16", "LIST", "sequences at once, a case each",
         0, 0, NULL},
        {"repeats", OPTION_INTEGER, &bench.repeats, "3", "R", "repetitions that the median is of",
         1, REPEATS_MAX, NULL},
        {"tp", OPTION_INTEGER, &r->tp, "1", "T", "slices of each stage", 1, 16, NULL},
        {"expert-groups", OPTION_INTEGER, &r->expert_groups, "0", "G", OFFLINE_EXPERT_GROUPS_HELP,
         0, 16, NULL},
        {"attention-slices", OPTION_INTEGER, &r->attention_slices, "0", "A",
         OFFLINE_ATTENTION_SLICES_HELP, 0, 16, NULL},
        {"attention-replicas", OPTION_INTEGER, &r->attention_replicas, "1", "R",
         OFFLINE_ATTENTION_REPLICAS_HELP, 1, 16, NULL},
        {"stages", OPTION_INTEGER, &r->stages, "1", "S", "pipeline stages", 1, 64, NULL},
        {"head", OPTION_TEXT, &r->head, "auto", "auto|last|shared", OFFLINE_HEAD_HELP, 0, 0, NULL},
        {"threads", OPTION_INTEGER, &r->threads, "0", "N",
         "threads of each rank; 0 shares the cores out", 0, 1024, NULL},
        {"chunk", OPTION_INTEGER, &r->chunk, "512", "C", "tokens in one step at most", 1, 8192,
         NULL},
        {"speculate", OPTION_INTEGER, &r->speculate, "0", "N",
         "tokens guessed ahead for each sequence, at most", 0, 16, NULL},
        {"draft-model", OPTION_TEXT, &r->draft_path, NULL, "PATH", OFFLINE_DRAFT_MODEL_HELP, 0, 0,
         NULL},
        {"period", OPTION_INTEGER, &bench.period, "0", "P",
         "prompts repeat their first P tokens; 0: they do not", 0, 1e6, NULL},
        {"shared", OPTION_INTEGER, &bench.shared, "-1", "S",
         "percent of each prompt that the prefix cache has; -1 is without the cache", -1, 100, NULL},
        {"activations", OPTION_TEXT, &r->activations, "native", "MODE", "native or f32", 0, 0,
         NULL},
        {"kv", OPTION_TEXT, &r->kv, "bf16", "bf16|int8|fp8", "how keys and values are kept", 0, 0,
         NULL},
        {"quantize", OPTION_TEXT, &r->quantize, "", "q8|q4|fp8",
         "quantize F32, F16 and BF16 weights as they are loaded", 0, 0, NULL},
        {"o", OPTION_TEXT, &bench.output, "table", "table|json", "how to print", 0, 0, NULL},
        {0},
    };
    const options_help_t help = {
        .usage = "shoal bench --model FILE [--prompt N] [--gen N] [--batch LIST] [options]",
        .about =
            "Measures tokens per second of prefill and decode on this machine, without a cluster.",
        .example =
            "shoal bench --model SmolLM2.gguf --prompt 512 --gen 128 --batch 1,8,16 --threads 2",
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
    if (status == STATUS_OK && r->draft_path && r->speculate == 0)
        status = fail(STATUS_INVALID, OFFLINE_DRAFT_MODEL_NEEDS);
    if (status == STATUS_OK && strcmp(bench.output, "table") != 0 &&
        strcmp(bench.output, "json") != 0)
        status = fail(STATUS_INVALID, "-o: \"%s\" is neither table nor json", bench.output);
    if (status == STATUS_OK)
        status = run(&bench);
    return status == STATUS_OK ? 0 : offline_failed("shoal bench", status);
}
