/* Every kind of attention behind position 8,192, through the engine's own layers: a prompt of 8,300
 * ids runs through the recorded models, whose recordings stop at 132, and what each layer leaves of
 * chosen rows is compared with the same layer in F64, from what the layer began with. The last
 * matrix of every feed-forward part is zeros, so that a layer is its attention: norms, projections,
 * turns with their scaling, choice of keys, softmax, output. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "copies.h"
#include "eval_run.h"
#include "exact_layer.h"

enum { LENGTH = 8300, VOCAB = 320 };

static const uint32_t rows[] = {3,    40,   127,  131,  511,  512,  1024, 2047, 4097, 5000,
                                6143, 7000, 7777, 8000, 8191, 8192, 8193, 8201, 8222, 8255,
                                8256, 8270, 8289, 8290, 8295, 8298, 8299};
enum { N_ROWS = sizeof rows / sizeof *rows, N_FAR = 12 };

typedef void (*exact_fn)(exact_model_t *model, uint32_t layer, const exact_call_t *call);

/* `f32` bounds the largest difference beside the largest value of the row; `native` the mean one,
 * of all rows beside the mean value (BF16 keys and products). */
typedef struct {
    const char *kind, *model;
    exact_fn exact;
    double f32, native;
} kind_t;

static const kind_t kinds[] = {
    {"plain, llama3 turns", "llama3-rope-sharded", exact_grouped, 5e-6, 1e-2},
    {"plain, yarn turns", "qwen2-yarn", exact_grouped, 5e-6, 1e-2},
    {"windowed", "mistral-swa", exact_grouped, 5e-6, 1e-2},
    {"windowed, norms of heads, two turns", "gemma3-text", exact_grouped, 5e-6, 1e-2},
    {"softcap", "gemma2", exact_grouped, 5e-6, 1e-2},
    {"sinks", "gpt-oss-bf16", exact_grouped, 5e-6, 1e-2},
    {"latent", "deepseek-v2-lite", exact_latent, 5e-6, 1e-2},
    {"latent, narrow queries", "deepseek-v3", exact_latent, 5e-6, 1e-2},
    {"latent, indexed", "deepseek-v32-dsa", exact_latent, 5e-6, 0},
    {"compressed", "deepseek-v4", exact_compressed, 5e-6, 0},
};
enum { N_KINDS = sizeof kinds / sizeof *kinds };

/* --- the model without its feed-forward parts --- */

static bool ends_feed_forward(const char *name)
{
    return strstr(name, "down_proj") != NULL || strstr(name, ".w2.weight") != NULL;
}

/* Writes zeros over what ends a feed-forward part; how many tensors that were. */
static uint32_t silence(const char *path)
{
    uint64_t n;
    uint32_t n_tensors = 0;
    const char *name;
    json_t *tensor;
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    assert_int_equal(fread(&n, 1, sizeof n, file), sizeof n);
    char *text = calloc(1, n + 1);
    assert_true(text != NULL && fread(text, 1, n, file) == n);
    json_t *header = json_loadb(text, n, 0, NULL);
    free(text);
    json_object_foreach(header, name, tensor) {
        const json_t *at = json_object_get(tensor, "data_offsets");
        if (!ends_feed_forward(name))
            continue;
        long first = (long)json_integer_value(json_array_get(at, 0));
        size_t bytes = (size_t)(json_integer_value(json_array_get(at, 1)) - first);
        char *zeros = calloc(1, bytes);
        assert_int_equal(fseek(file, (long)(sizeof n + n) + first, SEEK_SET), 0);
        assert_int_equal(fwrite(zeros, 1, bytes, file), bytes);
        free(zeros);
        n_tensors++;
    }
    json_decref(header);
    assert_int_equal(fclose(file), 0);
    return n_tensors;
}

static const char *const files[] = {
    "config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json",
    "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
    "model-00003-of-00003.safetensors",
};
enum { N_FILES = sizeof files / sizeof *files };

static void copy_model(const char *name, const char *dir)
{
    char from[512], to[128];
    uint32_t n_silent = 0;
    for (size_t i = 0; i < N_FILES; i++) {
        snprintf(from, sizeof from, "%s/%s/%s", SHOAL_TEST_DATA, name, files[i]);
        snprintf(to, sizeof to, "%s/%s", dir, files[i]);
        if (access(from, R_OK) != 0)
            continue;
        copies_file(from, to);
        if (strstr(files[i], ".safetensors") != NULL && strstr(files[i], ".json") == NULL)
            n_silent += silence(to);
    }
    assert_true(n_silent > 0);
}

/* --- the comparison --- */

typedef struct {
    double worst;         /* of any row: largest difference over the row's largest change */
    double sum, sum_size; /* of the differences, and of the changes */
    uint32_t n_far;       /* rows behind 8,191 that were compared */
    uint32_t n_close;
} found_t;

static void compare(const exact_call_t *call, const float *after, found_t *found)
{
    for (uint32_t r = 0; r < call->n_rows; r++) {
        const float *in = call->in + (size_t)call->rows[r] * call->width;
        const float *is = after + (size_t)call->rows[r] * call->width;
        const double *wanted = call->out + (size_t)r * call->width;
        double most = 0, size = 0;
        if (call->close[r]) {
            found->n_close++;
            continue;
        }
        for (uint32_t i = 0; i < call->width; i++) {
            double d = fabs((double)is[i] - wanted[i]), change = fabs(wanted[i] - (double)in[i]);
            most = d <= most ? most : d;
            size = fmax(size, change);
            found->sum += d;
            found->sum_size += change;
        }
        assert_true(size > 1e-3); /* a layer that does nothing shows nothing */
        found->worst = most / size <= found->worst ? found->worst : most / size;
        found->n_far += call->rows[r] >= 8192;
    }
}

static json_t *make_ids(void)
{
    json_t *ids = json_array(), *prompts = json_array();
    uint32_t random = 1;
    for (uint32_t i = 0; i < LENGTH; i++) {
        random = random * 1664525u + 1013904223u;
        json_array_append_new(ids, json_integer((random >> 8) % VOCAB));
    }
    json_array_append_new(prompts, ids);
    return prompts;
}

static found_t check_layers(const kind_t *kind, const char *dir, bool f32)
{
    json_t *ids = make_ids();
    eval_args_t args = {.model = dir, .ids = ids, .threads = 1, .f32 = f32, .last = true,
                        .no_sums = true, .hidden = true};
    eval_result_t result;
    exact_model_t model;
    found_t found = {0};
    bool close[N_ROWS];
    eval_run(&args, &result);
    exact_open(dir, &model);
    uint64_t layer = result.prompts[0].n_hidden / result.n_hidden_layers;
    uint32_t width = (uint32_t)(layer / LENGTH);
    double *out = calloc((size_t)N_ROWS * width, sizeof *out);
    for (uint32_t k = 0; k + 1 < result.n_hidden_layers; k++) {
        memset(close, 0, sizeof close);
        const float *in = result.prompts[0].hidden + k * layer;
        exact_call_t call = {in, LENGTH, width, rows, N_ROWS, out, close};
        kind->exact(&model, k, &call);
        compare(&call, call.in + layer, &found);
    }
    free(out);
    exact_close(&model);
    eval_release(&result);
    json_decref(ids);
    return found;
}

static void check_kind(void **state)
{
    const kind_t *kind = *state;
    char dir[] = "/tmp/shoal-long-XXXXXX";
    assert_non_null(mkdtemp(dir));
    copy_model(kind->model, dir);
    found_t f32 = check_layers(kind, dir, true), native = {0};
    if (kind->native > 0)
        native = check_layers(kind, dir, false);
    copies_remove(dir);
    print_message("%-36s f32 %.1e of a row's change, native mean %.1e; %u rows behind 8191, "
                  "%u too close\n", kind->kind, f32.worst,
                  native.sum_size > 0 ? native.sum / native.sum_size : 0, f32.n_far, f32.n_close);
    assert_true(f32.worst <= kind->f32);
    assert_true(f32.n_far >= 2 * N_FAR);
    if (kind->native > 0)
        assert_true(native.sum <= kind->native * native.sum_size);
}

int main(int argc, char **argv)
{
    struct CMUnitTest tests[N_KINDS];
    size_t n = 0;
    for (size_t i = 0; i < N_KINDS; i++)
        if (argc < 2 || strcmp(argv[1], kinds[i].model) == 0)
            tests[n++] = (struct CMUnitTest){.name = kinds[i].kind, .test_func = check_kind,
                                             .initial_state = (void *)(uintptr_t)&kinds[i]};
    return n > 0 ? _cmocka_run_group_tests("long contexts", tests, n, NULL, NULL) : 2;
}
