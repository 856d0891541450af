/* See eval_run.h. */
#include "eval_run.h"

#include <fcntl.h>
#include <math.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>

extern char **environ;

bool eval_is_wanted(int argc, char **argv, const char *name)
{
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], name) == 0)
            return true;
    return argc < 2;
}

const char *eval_program(void)
{
    const char *program = getenv("SHOAL_TEST_WORKER");
    return program ? program : SHOAL_BIN_DIR "/shoal-worker";
}

static char *text(const char *format, ...)
{
    char *result = NULL;
    va_list list;
    va_start(list, format);
    assert_true(vasprintf(&result, format, list) >= 0);
    va_end(list);
    return result;
}

char *eval_golden(const char *name)
{
    return text("%s/%s", SHOAL_TEST_DATA, name);
}

const char *const eval_cache_kinds[EVAL_CACHE_KINDS] = {
    "gguf-llama-q4_0/model.gguf", "gpt-oss-bf16",     "mistral-swa", "mixtral",
    "deepseek-v2-lite",           "deepseek-v32-dsa", "deepseek-v4", "gemma2"};

char *eval_real_model(void)
{
    const char *given = getenv("SHOAL_MODEL");
    char *path = given ? text("%s", given)
                       : text("%s/.cache/models/SmolLM2-135M-Instruct.Q4_1.gguf", SHOAL_CHECKOUT);
    if (access(path, R_OK) == 0)
        return path;
    /* Where everything is to be shown, a test that is left out is a failure. */
    if (getenv("SHOAL_REQUIRE_MODEL"))
        fail_msg("%s: no such model; tests/run fetches it", path);
    print_message("%s: no such model: set SHOAL_MODEL or run deploy/quickstart once\n", path);
    free(path);
    return NULL;
}

/* ---- reading ---- */

static char *read_file(const char *path, size_t *size_out)
{
    FILE *file = fopen(path, "rb");
    struct stat info;
    assert_non_null(file);
    assert_int_equal(fstat(fileno(file), &info), 0);
    char *bytes = malloc((size_t)info.st_size + 1);
    assert_int_equal(fread(bytes, 1, (size_t)info.st_size, file), info.st_size);
    bytes[info.st_size] = 0;
    fclose(file);
    *size_out = (size_t)info.st_size;
    return bytes;
}

/* A safetensors file as it lies in memory: of files of hundreds of MB only what is asked for is
 * read. */
typedef struct {
    uint8_t *bytes;
    size_t size;
    uint64_t header; /* bytes of its JSON, which begins at 8 */
    json_t *root;
} tensors_t;

static void tensors_open(tensors_t *tensors, const char *path)
{
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &info), 0);
    tensors->size = (size_t)info.st_size;
    assert_true(tensors->size >= 8);
    tensors->bytes = mmap(NULL, tensors->size, PROT_READ, MAP_PRIVATE, fd, 0);
    assert_true(tensors->bytes != MAP_FAILED);
    close(fd);
    memcpy(&tensors->header, tensors->bytes, 8);
    assert_true(tensors->header <= tensors->size - 8);
    tensors->root = json_loadb((const char *)tensors->bytes + 8, tensors->header, 0, NULL);
    assert_non_null(tensors->root);
}

static void tensors_close(tensors_t *tensors)
{
    json_decref(tensors->root);
    munmap(tensors->bytes, tensors->size);
}

static void *tensors_read(const tensors_t *tensors, const char *name, uint64_t *n_out)
{
    const json_t *offsets = json_object_get(json_object_get(tensors->root, name), "data_offsets");
    if (!offsets)
        return NULL;
    size_t begin = (size_t)json_integer_value(json_array_get(offsets, 0));
    size_t end = (size_t)json_integer_value(json_array_get(offsets, 1));
    assert_true(begin <= end && 8 + tensors->header + end <= tensors->size);
    void *tensor = malloc(end - begin + 1);
    memcpy(tensor, tensors->bytes + 8 + tensors->header + begin, end - begin);
    *n_out = (end - begin) / 4;
    return tensor;
}

static uint64_t tensors_side(const tensors_t *tensors, const char *name)
{
    const json_t *shape = json_object_get(json_object_get(tensors->root, name), "shape");
    return (uint64_t)json_integer_value(json_array_get(shape, 0));
}

void *eval_read_tensor(const char *path, const char *name, uint64_t *n_out)
{
    tensors_t tensors;
    tensors_open(&tensors, path);
    void *tensor = tensors_read(&tensors, name, n_out);
    tensors_close(&tensors);
    return tensor;
}

uint64_t eval_tensor_side(const char *path, const char *name)
{
    tensors_t tensors;
    tensors_open(&tensors, path);
    uint64_t side = tensors_side(&tensors, name);
    tensors_close(&tensors);
    return side;
}

double eval_max_abs(const float *a, const float *b, uint64_t n)
{
    double most = 0;
    for (uint64_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= most)) /* NaN counts as the largest */
            most = d;
    }
    return most;
}

/* ---- running ---- */

typedef struct {
    char *words[48];
    int n;
} words_t;

static void add(words_t *words, char *take_word)
{
    assert_true(words->n < 47);
    words->words[words->n++] = take_word;
}

static void add_number(words_t *words, const char *name, uint32_t value)
{
    if (value == 0)
        return;
    add(words, text("--%s", name));
    add(words, text("%u", value));
}

static void add_flag(words_t *words, const char *name, bool value)
{
    if (value)
        add(words, text("--%s", name));
}

static void build_words(words_t *words, const eval_args_t *args, const char *dir)
{
    add(words, text("%s", eval_program()));
    add(words, text("offline"));
    add(words, text("eval"));
    add(words, text("--model=%s", args->model));
    add(words, text("--ids=%s/ids.json", dir));
    add(words, text("--out=%s/out.safetensors", dir));
    add(words, text("-o"));
    add(words, text("json"));
    add_number(words, "tp", args->tp);
    add_number(words, "expert-groups", args->expert_groups);
    add_number(words, "attention-slices", args->attention_slices);
    add_number(words, "attention-replicas", args->attention_replicas);
    add_number(words, "stages", args->stages);
    add_number(words, "threads", args->threads);
    add_number(words, "batch", args->batch);
    add_number(words, "chunk", args->chunk);
    add_number(words, "passes", args->passes);
    add_number(words, "greedy", args->greedy);
    add_number(words, "speculate", args->speculate);
    add_number(words, "seed", args->seed);
    add_number(words, "fixed-rows", args->fixed_rows);
    if (args->draft_model)
        add(words, text("--draft-model=%s", args->draft_model));
    if (args->temperature > 0)
        add(words, text("--temperature=%g", args->temperature));
    if (args->quantize)
        add(words, text("--quantize=%s", args->quantize));
    if (args->kv)
        add(words, text("--kv=%s", args->kv));
    if (args->head)
        add(words, text("--head=%s", args->head));
    if (args->pack_cache)
        add(words, text("--pack-cache=%s", args->pack_cache));
    if (args->f32)
        add(words, text("--activations=f32"));
    add_flag(words, "last", args->last);
    add_flag(words, "no-sums", args->no_sums);
    add_flag(words, "no-prefix-cache", args->no_prefix_cache);
    add_flag(words, "late-queue", args->late_queue);
    add_flag(words, "hidden", args->hidden);
}

/* This process's environment with SHOAL_ISA and SHOAL_FAILPOINTS as asked for. */
static void build_environment(words_t *words, char **list, const eval_args_t *args)
{
    size_t n = 0;
    for (char **at = environ; *at && n < 200; at++)
        if (strncmp(*at, "SHOAL_ISA=", 10) != 0 && strncmp(*at, "SHOAL_FAILPOINTS=", 17) != 0)
            list[n++] = *at;
    if (args->isa) {
        add(words, text("SHOAL_ISA=%s", args->isa));
        list[n++] = words->words[words->n - 1];
    }
    if (args->failpoints) {
        add(words, text("SHOAL_FAILPOINTS=%s", args->failpoints));
        list[n++] = words->words[words->n - 1];
    }
    list[n] = NULL;
}

/* Runs the program in `dir`, its output in out.txt and err.txt there. Returns the wait status. */
static int spawn_and_wait(const eval_args_t *args, const char *dir)
{
    words_t words = {0}, extra = {0};
    char *list[256], *out = text("%s/out.txt", dir), *err = text("%s/err.txt", dir);
    posix_spawn_file_actions_t actions;
    pid_t pid;
    int status;
    build_words(&words, args, dir);
    build_environment(&extra, list, args);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, out, O_CREAT | O_WRONLY | O_TRUNC, 0600);
    posix_spawn_file_actions_addopen(&actions, 2, err, O_CREAT | O_WRONLY | O_TRUNC, 0600);
    assert_int_equal(posix_spawn(&pid, words.words[0], &actions, NULL, words.words, list), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    posix_spawn_file_actions_destroy(&actions);
    for (int i = 0; i < words.n; i++)
        free(words.words[i]);
    for (int i = 0; i < extra.n; i++)
        free(extra.words[i]);
    free(out);
    free(err);
    return status;
}

static char *make_dir(const eval_args_t *args)
{
    const char *base = getenv("TMPDIR");
    char *dir = text("%s/shoal-eval-XXXXXX", base ? base : "/tmp");
    assert_non_null(mkdtemp(dir));
    char *path = text("%s/ids.json", dir);
    assert_int_equal(json_dump_file(args->ids, path, 0), 0);
    free(path);
    return dir;
}

static void remove_dir(char *take_dir)
{
    const char *names[] = {"ids.json", "out.safetensors", "out.txt", "err.txt"};
    for (size_t i = 0; i < 4; i++) {
        char *path = text("%s/%s", take_dir, names[i]);
        unlink(path);
        free(path);
    }
    assert_int_equal(rmdir(take_dir), 0);
    free(take_dir);
}

static void read_guesses(const json_t *row, eval_guesses_t *out)
{
    if (!json_object_get(row, "guessed"))
        return;
    out->guessed = (uint64_t)json_integer_value(json_object_get(row, "guessed"));
    out->guessed_right = (uint64_t)json_integer_value(json_object_get(row, "guessed_right"));
    out->drafted = (uint64_t)json_integer_value(json_object_get(row, "drafted"));
    out->drafted_right = (uint64_t)json_integer_value(json_object_get(row, "drafted_right"));
}

static void read_lines(const char *dir, eval_result_t *out)
{
    char *path = text("%s/out.txt", dir), line[512];
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    while (fgets(line, sizeof line, file)) {
        json_t *row = json_loads(line, 0, NULL);
        assert_non_null(row);
        if (!json_object_get(row, "prompt")) { /* what quantization costs, how guesses went */
            read_guesses(row, &out->guesses);
            json_decref(row);
            continue;
        }
        size_t i = (size_t)json_integer_value(json_object_get(row, "prompt"));
        assert_true(i < out->n_prompts);
        out->prompts[i].sum_logprob = json_number_value(json_object_get(row, "sum_logprob"));
        out->prompts[i].cached = (uint32_t)json_integer_value(json_object_get(row, "cached"));
        json_decref(row);
    }
    fclose(file);
    free(path);
}

void eval_run(const eval_args_t *args, eval_result_t *out)
{
    char *dir = make_dir(args), *file = text("%s/out.safetensors", dir), name[32];
    tensors_t tensors;
    int status = spawn_and_wait(args, dir);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        size_t size;
        char *path = text("%s/err.txt", dir);
        char *words = read_file(path, &size);
        fail_msg("eval ended with status %#x: %s", (unsigned)status, words);
    }
    *out = (eval_result_t){.n_prompts = (uint32_t)json_array_size(args->ids),
                           .n_greedy = args->greedy};
    assert_true(out->n_prompts <= EVAL_PROMPTS_MAX);
    tensors_open(&tensors, file);
    for (uint32_t i = 0; i < out->n_prompts; i++) {
        uint64_t n = 0, n_greedy = 0;
        snprintf(name, sizeof name, "logits.%u", i);
        out->prompts[i].logits = tensors_read(&tensors, name, &n);
        assert_non_null(out->prompts[i].logits);
        out->prompts[i].rows =
            args->last ? 1 : (uint32_t)json_array_size(json_array_get(args->ids, i));
        out->vocab = (uint32_t)(n / out->prompts[i].rows);
        snprintf(name, sizeof name, "greedy.%u", i);
        out->prompts[i].greedy = tensors_read(&tensors, name, &n_greedy);
        assert_int_equal(n_greedy, args->greedy);
        if (!args->hidden)
            continue;
        snprintf(name, sizeof name, "hidden.%u", i);
        out->n_hidden_layers = (uint32_t)tensors_side(&tensors, name);
        out->prompts[i].hidden = tensors_read(&tensors, name, &out->prompts[i].n_hidden);
        assert_non_null(out->prompts[i].hidden);
    }
    tensors_close(&tensors);
    read_lines(dir, out);
    free(file);
    remove_dir(dir);
}

int eval_run_failing(const eval_args_t *args, char *text_out, size_t text_bytes)
{
    char *dir = make_dir(args), *path = text("%s/err.txt", dir);
    int status = spawn_and_wait(args, dir);
    size_t size;
    char *words = read_file(path, &size);
    snprintf(text_out, text_bytes, "%s", words);
    free(words);
    free(path);
    remove_dir(dir);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

void eval_release(eval_result_t *result)
{
    for (uint32_t i = 0; i < result->n_prompts; i++) {
        free(result->prompts[i].logits);
        free(result->prompts[i].greedy);
        free(result->prompts[i].hidden);
    }
}

uint64_t eval_hash(const eval_result_t *result)
{
    uint64_t hash = result->n_prompts;
    for (uint32_t i = 0; i < result->n_prompts; i++) {
        const float *last =
            result->prompts[i].logits + (size_t)(result->prompts[i].rows - 1) * result->vocab;
        hash = XXH3_64bits_withSeed(last, result->vocab * sizeof *last, hash);
        hash = XXH3_64bits_withSeed(result->prompts[i].greedy, result->n_greedy * sizeof(int32_t),
                                    hash);
    }
    return hash;
}

uint64_t eval_hash_rows(const eval_result_t *result)
{
    uint64_t hash = result->n_prompts;
    for (uint32_t i = 0; i < result->n_prompts; i++)
        hash = XXH3_64bits_withSeed(result->prompts[i].logits,
                                    (size_t)result->prompts[i].rows * result->vocab * sizeof(float),
                                    hash);
    return hash;
}

uint64_t eval_run_hash(const eval_args_t *args, eval_guesses_t *sum)
{
    eval_result_t result;
    eval_run(args, &result);
    uint64_t hash = eval_hash(&result);
    sum->guessed += result.guesses.guessed;
    sum->guessed_right += result.guesses.guessed_right;
    sum->drafted += result.guesses.drafted;
    sum->drafted_right += result.guesses.drafted_right;
    eval_release(&result);
    return hash;
}
