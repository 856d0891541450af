/* Drives llama.cpp through its C API: bench/peers times it so on the files that Shoal reads.
 * bench/peers compiles this against the headers of the package that it fetched; nothing in the
 * project's own build refers to it.
 *
 *   peers_llama system
 *   peers_llama quantize FROM TO FTYPE
 *   peers_llama bench MODEL THREADS FLASH UBATCH UNIFIED SERVERS CASE...
 *     CASE: pp:N            prefill of N tokens, logits of the last one only
 *           tg:N            N tokens from an empty cache, one by one
 *           batch:B:P:N     B sequences: each gets a prompt of P tokens, then N more, one at a step
 *     SERVERS: "-", or servers of its RPC backend, host:port with commas between
 *
 * Each case is run once to warm up and once for its figure, a line of JSON with tokens/s. Ids are
 * fed as they come and nothing is sampled: that is left out of the peer's time, not of ours. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "ggml-backend.h"
#include "ggml-rpc.h"
#include "llama.h"

enum { STREAMS_MAX = 64, CONTEXT_MAX = 8192, SERVERS_MAX = 8 };

static void be_quiet(enum ggml_log_level level, const char *text, void *context)
{
    (void)context;
    if (level == GGML_LOG_LEVEL_ERROR)
        fputs(text, stderr);
}

static void die(const char *what)
{
    fprintf(stderr, "peers_llama: %s\n", what);
    exit(1);
}

static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

typedef struct {
    struct llama_context *context;
    struct llama_batch batch;
    uint32_t vocab, counter;
} drive_t;

/* Ids without meaning. The same mixing step as in a linear congruential generator; 3 and up, so
 * that no id is a special one. */
static llama_token next_id(drive_t *drive)
{
    drive->counter = drive->counter * 1664525u + 1013904223u;
    return (llama_token)(3 + (drive->counter >> 8) % (drive->vocab - 3));
}

static void add(drive_t *drive, int position, int sequence, bool logits)
{
    int at = drive->batch.n_tokens++;
    drive->batch.token[at] = next_id(drive);
    drive->batch.pos[at] = position;
    drive->batch.n_seq_id[at] = 1;
    drive->batch.seq_id[at][0] = sequence;
    drive->batch.logits[at] = logits;
}

static void decode(drive_t *drive)
{
    if (llama_decode(drive->context, drive->batch) != 0)
        die("llama_decode failed");
    llama_synchronize(drive->context);
    drive->batch.n_tokens = 0;
}

/* Tokens/s of a case: of the prompts alone when nothing is generated, else of what is generated. */
static double run_case(drive_t *drive, int streams, int prompt, int gen)
{
    llama_memory_clear(llama_get_memory(drive->context), true);
    drive->batch.n_tokens = 0;
    double begun = now_s();
    for (int s = 0; s < streams && prompt > 0; s++) {
        for (int i = 0; i < prompt; i++)
            add(drive, i, s, i + 1 == prompt);
        decode(drive);
    }
    double prefilled = now_s();
    for (int i = 0; i < gen; i++) {
        for (int s = 0; s < streams; s++)
            add(drive, prompt + i, s, true);
        decode(drive);
    }
    double ended = now_s();
    return gen ? streams * gen / (ended - prefilled) : streams * prompt / (prefilled - begun);
}

static void read_case(const char *text, int *streams_out, int *prompt_out, int *gen_out)
{
    *streams_out = 1;
    *prompt_out = *gen_out = 0;
    if (sscanf(text, "pp:%d", prompt_out) == 1 || sscanf(text, "tg:%d", gen_out) == 1)
        return;
    if (sscanf(text, "batch:%d:%d:%d", streams_out, prompt_out, gen_out) != 3 ||
        *streams_out > STREAMS_MAX)
        die("a case is pp:N, tg:N or batch:B:P:N");
}

/* Registers the servers and returns their devices, NULL at the end. */
static ggml_backend_dev_t *devices_of(char *servers)
{
    static ggml_backend_dev_t devices[SERVERS_MAX + 1];
    size_t n = 0;
    for (char *one = strtok(servers, ","); one != NULL; one = strtok(NULL, ",")) {
        ggml_backend_reg_t reg = ggml_backend_rpc_add_server(one);
        if (reg == NULL || ggml_backend_reg_dev_count(reg) == 0 || n == SERVERS_MAX)
            die("no such server of the RPC backend");
        devices[n++] = ggml_backend_reg_dev_get(reg, 0);
    }
    return devices;
}

static struct llama_model *load(const char *path, char *servers)
{
    struct llama_model_params params = llama_model_default_params();
    /* Read into memory, not mapped: no page fault falls into what is timed. */
    params.load_mode = LLAMA_LOAD_MODE_NONE;
    params.n_gpu_layers = 0;
    if (strcmp(servers, "-") != 0) {
        params.devices = devices_of(servers);
        params.n_gpu_layers = 999;
    }
    struct llama_model *model = llama_model_load_from_file(path, params);
    if (model == NULL)
        die("the model cannot be loaded");
    return model;
}

static void bench(int argc, char **argv)
{
    if (argc < 9)
        die("usage: bench MODEL THREADS FLASH UBATCH UNIFIED SERVERS CASE...");
    int threads = atoi(argv[3]), tokens_max = 0, streams_max = 1;
    for (int i = 8; i < argc; i++) {
        int streams, prompt, gen;
        read_case(argv[i], &streams, &prompt, &gen);
        int tokens = streams * (prompt + gen);
        tokens_max = tokens > tokens_max ? tokens : tokens_max;
        streams_max = streams > streams_max ? streams : streams_max;
    }
    double begun = now_s();
    struct llama_model *model = load(argv[2], argv[7]);
    struct llama_context_params params = llama_context_default_params();
    /* A cache that is not shared is cut into equal parts, each rounded up to 256. */
    params.n_ctx = (uint32_t)(tokens_max + 256 * streams_max);
    params.n_batch = 2048;
    params.n_ubatch = (uint32_t)atoi(argv[5]);
    params.n_seq_max = (uint32_t)streams_max;
    params.n_threads = params.n_threads_batch = threads;
    params.flash_attn_type = (enum llama_flash_attn_type)atoi(argv[4]);
    params.kv_unified = atoi(argv[6]) != 0;
    params.no_perf = true;
    drive_t drive = {.batch = llama_batch_init(CONTEXT_MAX, 0, 1), .counter = 1};
    drive.vocab = (uint32_t)llama_vocab_n_tokens(llama_model_get_vocab(model));
    drive.context = llama_init_from_model(model, params);
    if (drive.context == NULL)
        die("no context for these parameters");
    double loaded = now_s() - begun;
    for (int i = 8; i < argc; i++) {
        int streams, prompt, gen;
        read_case(argv[i], &streams, &prompt, &gen);
        (void)run_case(&drive, streams, prompt, gen > 4 ? 4 : gen);
        double rate = run_case(&drive, streams, prompt, gen);
        printf("{\"case\": \"%s\", \"tokens_per_s\": %.2f}\n", argv[i], rate);
        fflush(stdout);
    }
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("{\"case\": \"load\", \"seconds\": %.3f, \"rss_bytes\": %lld}\n", loaded,
           (long long)usage.ru_maxrss * 1024);
    llama_batch_free(drive.batch);
    llama_free(drive.context);
    llama_model_free(model);
}

int main(int argc, char **argv)
{
    llama_log_set(be_quiet, NULL);
    llama_backend_init();
    if (argc == 2 && strcmp(argv[1], "system") == 0) {
        printf("%s\n", llama_print_system_info());
    } else if (argc == 5 && strcmp(argv[1], "quantize") == 0) {
        llama_model_quantize_params params = llama_model_quantize_default_params();
        params.ftype = (enum llama_ftype)atoi(argv[4]);
        params.allow_requantize = true;
        if (llama_model_quantize(argv[2], argv[3], &params) != 0)
            die("llama_model_quantize failed");
    } else if (argc > 2 && strcmp(argv[1], "bench") == 0) {
        bench(argc, argv);
    } else {
        die("usage: system | quantize FROM TO FTYPE | bench MODEL ...");
    }
    return 0;
}
