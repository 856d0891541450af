/* `shoal eval`: token ids in, logits and greedy continuations out. */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/buffer.h"
#include "common/base/memory.h"
#include "common/base/options.h"
#include "common/model/model.h"
#include "kernels/ops.h"
#include "worker/engine/kv.h"
#include "worker/engine/safetensors_write.h"
#include "worker/offline.h"

#define PROMPTS_MAX 65536u

typedef struct {
    uint32_t n;
    uint32_t *ids;
    uint32_t logits_tensor, greedy_tensor, hidden_tensor;
    double sum_logprob;
    uint32_t n_greedy;
    uint32_t cached; /* tokens found in the prefix cache */
} prompt_t;

typedef struct {
    offline_replica_t replica;
    const char *ids_path, *out_path, *output;
    int64_t greedy, passes, seed;
    double temperature; /* of the continuation */
    bool last, no_sums, hidden;

    uint32_t n_layers, n_hidden;
    uint32_t hidden_prompts; /* whose first token has been seen: prompts run one after another */
    uint32_t vocab;
    prompt_t *prompts;
    uint32_t n_prompts;
    safetensors_t *file;
    model_t *model;
    scheduler_load_t load; /* when everything has ended */
    bool writing;    /* the last pass: the others only warm the prefix cache */
    uint64_t stored_bytes, bytes; /* of the weights, as stored and as quantized */
    double stored_sum;            /* of log-probabilities with the weights as they are stored */

    status_t status; /* of the logits callback */
    char text[STATUS_TEXT_MAX];
} eval_t;

/* ---- reading ---- */

static status_t read_prompt(eval_t *eval, const json_t *array, size_t index)
{
    prompt_t *prompt = &eval->prompts[index];
    if (!json_is_array(array) || json_array_size(array) == 0)
        return fail(STATUS_INVALID, "%s: element %zu must be a non-empty array of token ids",
                    eval->ids_path, index);
    if (json_array_size(array) > MODEL_CONTEXT_MAX)
        return fail(STATUS_INVALID, "%s: prompt %zu has %zu tokens; at most %d", eval->ids_path,
                    index, json_array_size(array), MODEL_CONTEXT_MAX);
    prompt->n = (uint32_t)json_array_size(array);
    prompt->ids = MEM_NEW_ARRAY(uint32_t, prompt->n);
    for (uint32_t i = 0; i < prompt->n; i++) {
        const json_t *id = json_array_get(array, i);
        json_int_t value = json_is_integer(id) ? json_integer_value(id) : -1;
        if (value < 0 || value >= eval->vocab)
            return fail(STATUS_INVALID, "%s: id %u of prompt %zu must be an integer from 0 to %u",
                        eval->ids_path, i, index, eval->vocab - 1);
        prompt->ids[i] = (uint32_t)value;
    }
    return STATUS_OK;
}

static status_t read_prompts(eval_t *eval)
{
    json_error_t error;
    if (access(eval->ids_path, R_OK) != 0)
        return fail(STATUS_NOT_FOUND, "--ids: %s: %s", eval->ids_path, strerror(errno));
    json_t *root = json_load_file(eval->ids_path, 0, &error);
    if (!root)
        return fail(STATUS_INVALID, "%s: line %d: %s", eval->ids_path, error.line, error.text);
    status_t status = STATUS_OK;
    if (!json_is_array(root) || json_array_size(root) == 0 || json_array_size(root) > PROMPTS_MAX)
        status = fail(STATUS_INVALID, "%s must be an array of 1 to %u arrays of token ids",
                      eval->ids_path, PROMPTS_MAX);
    else
        eval->prompts = MEM_NEW_ARRAY(prompt_t, json_array_size(root));
    for (size_t i = 0; status == STATUS_OK && i < json_array_size(root); i++) {
        eval->n_prompts++;
        status = read_prompt(eval, json_array_get(root, i), i);
    }
    json_decref(root);
    return status;
}

/* The context holds the longest prompt and its continuation; KV memory as many of those as run at
 * once, and what the prefix cache may keep: all prompts when it is to be warm, else some of them. */
static void size_replica(eval_t *eval)
{
    uint32_t longest = 0;
    uint64_t all = 0;
    uint32_t more = eval->greedy > 0 ? (uint32_t)eval->greedy : 1;
    for (uint32_t i = 0; i < eval->n_prompts; i++) {
        uint32_t n = eval->prompts[i].n + more;
        longest = n > longest ? n : longest;
        all += n + KV_BLOCK_TOKENS;
    }
    uint64_t running = (uint64_t)eval->replica.batch * (uint64_t)eval->replica.stages;
    running = running < eval->n_prompts ? running : eval->n_prompts;
    uint64_t kept = all < 64u * KV_BLOCK_TOKENS ? all : 64u * KV_BLOCK_TOKENS;
    uint64_t at_once = (uint64_t)(longest + 2 * KV_BLOCK_TOKENS) * running;
    eval->replica.context_max = longest;
    eval->replica.kv_tokens_max = at_once + (eval->passes > 1 ? all : 0) + kept;
}

static status_t create_file(eval_t *eval)
{
    char name[48];
    eval->file = safetensors_new();
    for (uint32_t i = 0; i < eval->n_prompts; i++) {
        prompt_t *prompt = &eval->prompts[i];
        uint64_t dims[2] = {eval->last ? 1 : prompt->n, eval->vocab};
        snprintf(name, sizeof name, "logits.%u", i);
        prompt->logits_tensor = safetensors_add(eval->file, name, SAFETENSORS_F32, 2, dims);
        if (eval->greedy > 0) {
            uint64_t n = (uint64_t)eval->greedy;
            snprintf(name, sizeof name, "greedy.%u", i);
            prompt->greedy_tensor = safetensors_add(eval->file, name, SAFETENSORS_I32, 1, &n);
        }
        if (eval->hidden) {
            uint64_t shape[2] = {eval->n_layers + 1, (uint64_t)prompt->n * eval->n_hidden};
            snprintf(name, sizeof name, "hidden.%u", i);
            prompt->hidden_tensor = safetensors_add(eval->file, name, SAFETENSORS_F32, 2, shape);
        }
    }
    return safetensors_create(eval->file, eval->out_path);
}

static status_t read_shape(eval_t *eval)
{
    TRY(offline_model(&eval->replica, &eval->model));
    eval->replica.model = eval->model;
    eval->vocab = model_config(eval->model)->vocab;
    eval->n_layers = model_config(eval->model)->n_layers;
    eval->n_hidden = model_residual(model_config(eval->model));
    eval->bytes = model_weight_bytes(eval->model);
    if (eval->replica.quantize[0] == 0)
        return STATUS_OK;
    model_t *stored;
    TRY(model_open(eval->replica.model_path, &stored));
    eval->stored_bytes = model_weight_bytes(stored);
    model_close(stored);
    return STATUS_OK;
}

/* ---- running ---- */

static void keep_failure(eval_t *eval, status_t status)
{
    if (status == STATUS_OK || eval->status != STATUS_OK)
        return;
    eval->status = status;
    snprintf(eval->text, sizeof eval->text, "%s", status_text());
}

static void on_logits(void *context, const char *session, uint32_t choice, uint32_t position,
                      uint32_t n_rows, uint32_t vocab, const float *rows)
{
    eval_t *eval = context;
    prompt_t *prompt = &eval->prompts[strtoul(session, NULL, 10)];
    (void)choice;
    for (uint32_t i = 0; i < n_rows && eval->writing; i++) {
        uint32_t at = position + i;
        const float *row = rows + (size_t)i * vocab;
        if (at + 1 < prompt->n)
            prompt->sum_logprob += sampler_logprob(row, vocab, prompt->ids[at + 1]);
        if (eval->last && at + 1 < prompt->n)
            continue;
        uint64_t first = eval->last ? 0 : (uint64_t)at * vocab;
        keep_failure(eval, safetensors_put(eval->file, prompt->logits_tensor, first, row, vocab));
    }
}

/* Rows of the residual stream. One prompt at a time is in work, in the order of the file. */
static void on_hidden(void *context, uint32_t layer, uint32_t position, uint32_t n,
                      const float *row)
{
    eval_t *eval = context;
    if (layer == 0 && position == 0)
        eval->hidden_prompts++;
    if (eval->hidden_prompts == 0 || eval->hidden_prompts > eval->n_prompts)
        return;
    const prompt_t *prompt = &eval->prompts[eval->hidden_prompts - 1];
    if (position < prompt->n)
        keep_failure(eval, safetensors_put(eval->file, prompt->hidden_tensor,
                                           ((uint64_t)layer * prompt->n + position) * n, row, n));
}

static void admit(eval_t *eval, offline_client_t *client, uint32_t index, uint64_t pass)
{
    const prompt_t *prompt = &eval->prompts[index];
    admission_t admission = {
        .owner = 1,
        .choice = (uint32_t)pass,
        .prompt = prompt->ids,
        .n_prompt = prompt->n,
        .sampling = sampling_default,
        .max_tokens = eval->greedy > 0 ? (uint32_t)eval->greedy : 1,
        .logits_from = eval->no_sums ? prompt->n - 1 : 0,
    };
    admission.sampling.temperature = (float)eval->temperature;
    admission.sampling.seed = (uint64_t)eval->seed;
    snprintf(admission.session, sizeof admission.session, "%u", index);
    if (!eval->writing && !eval->no_sums)
        admission.logits_from = LOGITS_NONE;
    offline_admit(client, &admission);
}

static status_t take(eval_t *eval, const sequence_output_t *out)
{
    prompt_t *prompt = &eval->prompts[strtoul(out->session, NULL, 10)];
    if (eval->writing && eval->greedy > 0 && out->n_ids > 0) {
        int32_t ids[SCHEDULER_OUTPUT_IDS_MAX];
        for (uint32_t i = 0; i < out->n_ids; i++)
            ids[i] = (int32_t)out->ids[i];
        TRY(safetensors_put(eval->file, prompt->greedy_tensor, out->first_position, ids,
                            out->n_ids));
    }
    if (out->end != END_NONE && out->end != END_FINISHED)
        return fail(STATUS_REPLICA_LOST, "prompt %s: %s", out->session, out->error);
    prompt->cached = out->n_cached;
    return STATUS_OK;
}

static status_t drive(void *context, offline_client_t *client)
{
    eval_t *eval = context;
    for (int64_t pass = 0; pass < eval->passes; pass++) {
        eval->writing = pass == eval->passes - 1;
        /* At most 512 admitted at a time, so the replica's table is never full. */
        uint32_t admitted = 0, ended = 0;
        while (ended < eval->n_prompts) {
            while (admitted < eval->n_prompts && admitted - ended < 512)
                admit(eval, client, admitted++, (uint64_t)pass);
            sequence_output_t out;
            offline_next(client, &out);
            TRY(take(eval, &out));
            ended += out.end != END_NONE;
        }
    }
    offline_load(client, &eval->load);
    return STATUS_OK;
}

/* ---- the command ---- */

static void print_results(const eval_t *eval)
{
    bool json = strcmp(eval->output, "json") == 0;
    if (!json)
        printf("%-7s %8s %8s %20s\n", "PROMPT", "TOKENS", "CACHED", "SUM_LOGPROB");
    for (uint32_t i = 0; i < eval->n_prompts; i++) {
        const prompt_t *prompt = &eval->prompts[i];
        if (json && eval->no_sums)
            printf("{\"prompt\":%u,\"tokens\":%u,\"cached\":%u}\n", i, prompt->n, prompt->cached);
        else if (json)
            printf("{\"prompt\":%u,\"tokens\":%u,\"cached\":%u,\"sum_logprob\":%.9g}\n", i,
                   prompt->n, prompt->cached, prompt->sum_logprob);
        else if (eval->no_sums)
            printf("%-7u %8u %8u %20s\n", i, prompt->n, prompt->cached, "-");
        else
            printf("%-7u %8u %8u %20.6f\n", i, prompt->n, prompt->cached, prompt->sum_logprob);
    }
}

/* How often guesses were right. */
static void print_guesses(const eval_t *eval)
{
    const scheduler_load_t *load = &eval->load;
    if (strcmp(eval->output, "json") == 0)
        printf("{\"guessed\":%" PRIu64 ",\"guessed_right\":%" PRIu64 ",\"drafted\":%" PRIu64
               ",\"drafted_right\":%" PRIu64 ",\"preemptions\":%" PRIu64 "}\n",
               load->drafted_tokens, load->accepted_tokens, load->model_drafted_tokens,
               load->model_accepted_tokens, load->preemptions);
    else
        printf("\n%" PRIu64 " tokens guessed, %" PRIu64 " right; %" PRIu64 " steps\n",
               load->drafted_tokens, load->accepted_tokens, load->steps);
}

static status_t run_once(eval_t *eval)
{
    offline_work_t work = {.context = eval, .drive = drive, .logits = on_logits};
    eval->hidden_prompts = 0;
    for (uint32_t i = 0; i < eval->n_prompts; i++)
        eval->prompts[i].sum_logprob = 0;
    TRY(offline_run(&eval->replica, &work));
    return eval->status == STATUS_OK ? STATUS_OK : fail(eval->status, "%s", eval->text);
}

static double sum_of_all(const eval_t *eval, uint64_t *n_out)
{
    double sum = 0;
    *n_out = 0;
    for (uint32_t i = 0; i < eval->n_prompts; i++) {
        sum += eval->prompts[i].sum_logprob;
        *n_out += eval->prompts[i].n - 1;
    }
    return sum;
}

/* The same prompts with the weights as they are stored: what quantization is measured against. What
 * it writes is written again by the run that counts. */
static status_t run_stored(eval_t *eval)
{
    const char *quantize = eval->replica.quantize;
    uint64_t n;
    eval->replica.quantize = "";
    eval->replica.model = NULL;
    status_t status = run_once(eval);
    eval->replica.quantize = quantize;
    eval->replica.model = eval->model;
    eval->stored_sum = sum_of_all(eval, &n);
    return status;
}

/* What quantization saves and what it costs. */
static void print_quantization(const eval_t *eval)
{
    uint64_t n;
    double sum = sum_of_all(eval, &n);
    double before = n > 0 && !eval->no_sums ? exp(-eval->stored_sum / (double)n) : 0;
    double after = n > 0 && !eval->no_sums ? exp(-sum / (double)n) : 0;
    if (strcmp(eval->output, "json") == 0)
        printf("{\"quantize\":\"%s\",\"stored_bytes\":%" PRIu64 ",\"bytes\":%" PRIu64
               ",\"stored_perplexity\":%.9g,\"perplexity\":%.9g}\n",
               eval->replica.quantize, eval->stored_bytes, eval->bytes, before, after);
    else
        printf("\n%s: %.1f MiB of weights instead of %.1f", eval->replica.quantize,
               (double)eval->bytes / 1048576, (double)eval->stored_bytes / 1048576);
    if (strcmp(eval->output, "json") != 0 && before > 0)
        printf("; perplexity %.4f instead of %.4f (%+.2f %%)", after, before,
               100 * (after / before - 1));
    if (strcmp(eval->output, "json") != 0)
        putchar('\n');
}

static status_t run(eval_t *eval)
{
    kernels_cpu_begin();
    TRY(read_shape(eval));
    if (eval->hidden) {
        eval->replica.batch = 1;
        eval->replica.no_prefix_cache = true;
        eval->replica.hidden = on_hidden;
        eval->replica.hidden_context = eval;
    }
    TRY(read_prompts(eval));
    size_replica(eval);
    TRY(create_file(eval));
    if (eval->replica.quantize[0] != 0 && !eval->no_sums)
        TRY(run_stored(eval));
    TRY(run_once(eval));
    safetensors_t *file = eval->file;
    eval->file = NULL;
    return safetensors_finish(file);
}

int offline_eval(int argc, char **argv)
{
    eval_t eval = {0};
    offline_replica_t *r = &eval.replica;
    const option_t options[] = {
        {"model", OPTION_TEXT, &r->model_path, NULL, "PATH",
         "a GGUF file or a Hugging Face directory", 0, 0, NULL},
        {"ids", OPTION_TEXT, &eval.ids_path, NULL, "FILE", "JSON: an array of arrays of token ids",
         0, 0, NULL},
        {"out", OPTION_TEXT, &eval.out_path, NULL, "FILE", "safetensors file to write", 0, 0, NULL},
        {"greedy", OPTION_INTEGER, &eval.greedy, "0", "N",
         "also N tokens of greedy continuation each", 0, 1e6, NULL},
        {"temperature", OPTION_REAL, &eval.temperature, "0", "T", "of the continuation", 0, 10, NULL},
        {"seed", OPTION_INTEGER, &eval.seed, "0", "N", "of the continuation", 0, 1e15, NULL},
        {"speculate", OPTION_INTEGER, &r->speculate, "0", "N",
         "tokens guessed ahead for each prompt's continuation, at most", 0, 16, NULL},
        {"draft-model", OPTION_TEXT, &r->draft_path, NULL, "PATH", OFFLINE_DRAFT_MODEL_HELP, 0, 0,
         NULL},
        {"last", OPTION_FLAG, &eval.last, NULL, NULL, "write only the last row of each prompt", 0,
         0, NULL},
        {"no-sums", OPTION_FLAG, &eval.no_sums, NULL, NULL,
         "with --last: compute only the last row, print no sums", 0, 0, NULL},
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
        {"batch", OPTION_INTEGER, &r->batch, "8", "B", "prompts in one step at most", 1, 64, NULL},
        {"chunk", OPTION_INTEGER, &r->chunk, "512", "C", "tokens in one step at most", 1, 8192},
        {"activations", OPTION_TEXT, &r->activations, "native", "MODE", "native or f32", 0, 0,
         NULL},
        {"kv", OPTION_TEXT, &r->kv, "bf16", "bf16|int8|fp8", "how keys and values are kept", 0, 0},
        {"quantize", OPTION_TEXT, &r->quantize, "", "q8|q4|fp8",
         "quantize F32, F16 and BF16 weights as they are loaded; reports what it costs", 0, 0, NULL},
        {"pack-cache", OPTION_TEXT, &r->pack_cache, NULL, "DIR",
         "keep packed weights and digests there, for the next run", 0, 0, NULL},
        {"pack-cache-max", OPTION_INTEGER, &r->pack_cache_bytes, "64000000000", "BYTES",
         "what packed weights may take there", 0, 1e18, NULL},
        {"no-prefix-cache", OPTION_FLAG, &r->no_prefix_cache, NULL, NULL,
         "compute every prompt whole", 0, 0, NULL},
        {"hidden", OPTION_FLAG, &eval.hidden, NULL, NULL,
         "for tests: also write hidden.<i> [layers + 1, tokens * hidden], one prompt at a time", 0,
         0, NULL},
        {"fixed-rows", OPTION_INTEGER, &r->fixed_rows, "0", "N",
         "for tests: guess as if a step cost N rows beside its own; 0: as measured", 0, 1000, NULL},
        {"late-queue", OPTION_FLAG, &r->late_queue, NULL, NULL,
         "for tests: rank 0 works only when it is waited for", 0, 0, NULL},
        {"passes", OPTION_INTEGER, &eval.passes, "1", "P",
         "evaluate everything P times, the last with a warm prefix cache", 1, 16, NULL},
        {"o", OPTION_TEXT, &eval.output, "table", "table|json", "how to print", 0, 0, NULL},
        {0},
    };
    const options_help_t help = {
        .usage = "shoal eval --model FILE --ids IN.json --out OUT.safetensors [options]",
        .about =
            "Runs prompts of token ids through a model without a cluster. Writes logits.<i> F32 "
            "[tokens, vocabulary] and greedy.<i> I32 [N]; prints each prompt's sum of "
            "log-probabilities.",
        .example =
            "echo '[[504, 3575, 282, 4649, 314]]' > ids.json\n"
            "shoal eval --model SmolLM2.gguf --ids ids.json --out logits.safetensors --greedy 16",
        .options = options,
    };
    size_t n_words = 0;
    bool want_help = false;
    status_t status = options_read(options, argc, argv, NULL, 0, &n_words, &want_help);
    if (want_help) {
        options_print_help(&help);
        return 0;
    }
    if (status == STATUS_OK && (!r->model_path || !eval.ids_path || !eval.out_path))
        status = fail(STATUS_INVALID, "--model, --ids and --out are needed");
    if (status == STATUS_OK && eval.no_sums && !eval.last)
        status = fail(STATUS_INVALID, "--no-sums needs --last: all rows are asked for");
    if (status == STATUS_OK && eval.hidden && (r->stages != 1 || eval.passes != 1))
        status = fail(STATUS_INVALID, "--hidden needs one stage and one pass");
    if (status == STATUS_OK && r->draft_path && r->speculate == 0)
        status = fail(STATUS_INVALID, OFFLINE_DRAFT_MODEL_NEEDS);
    if (status == STATUS_OK && strcmp(eval.output, "table") != 0 &&
        strcmp(eval.output, "json") != 0)
        status = fail(STATUS_INVALID, "-o: \"%s\" is neither table nor json", eval.output);
    if (status == STATUS_OK)
        status = run(&eval);
    if (status == STATUS_OK)
        print_results(&eval);
    if (status == STATUS_OK && r->quantize[0] != 0)
        print_quantization(&eval);
    if (status == STATUS_OK && r->speculate > 0)
        print_guesses(&eval);
    safetensors_drop(eval.file);
    model_close(eval.model);
    for (uint32_t i = 0; i < eval.n_prompts; i++)
        free(eval.prompts[i].ids);
    free(eval.prompts);
    return status == STATUS_OK ? 0 : offline_failed("shoal eval", status);
}
