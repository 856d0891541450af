/* Past opening: any bytes as a GGUF file, or any config.json with the weights that its own outline
 * asks for, is opened, loaded as a whole and in slices, and run for two steps with the plain C
 * kernels. The last four bytes of a configuration choose the weights' values (also NaN and
 * infinities), the mode and the slices. What is larger than a moment's work is left. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/memory.h"
#include "common/model/model_outline.h"
#include "load_configs.h"
#include "tests/unit/model/gguf_draft.h"
#include "worker/engine/head.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t n_max, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t n, size_t n_max);

enum {
    N_CONFIGS = sizeof load_configs / sizeof *load_configs,
    TAIL = 4,
    WEIGHT_BYTES_MAX = 256 << 10,
    LAYERS_MAX = 6,
    VOCAB_MAX = 512,
    WIDTH_MAX = 2048,
    N_FIRST = 5, /* rows of the first step; one more in the second */
};

static char folder[] = "/tmp/shoal-fuzz-XXXXXX";

static void remove_folder(void)
{
    char path[64];
    snprintf(path, sizeof path, "%s/config.json", folder);
    unlink(path);
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    unlink(path);
    rmdir(folder);
}

/* --- inputs --- */

static size_t start_again(uint8_t *data, size_t n_max, unsigned seed)
{
    buffer_t bytes = {0};
    unsigned which = seed / 32 % (N_CONFIGS + 1);
    if (which < N_CONFIGS) {
        buffer_append_text(&bytes, load_configs[which]);
        buffer_append(&bytes, &seed, TAIL);
    } else {
        draft_t *draft = draft_llama();
        draft_write(draft, &bytes);
        draft_free(draft);
    }
    size_t n = bytes.size <= n_max ? bytes.size : 0;
    memcpy(data, bytes.data, n);
    buffer_release(&bytes);
    return n;
}

/* Another number in the place of one, which keeps the text JSON. */
static size_t change_number(uint8_t *data, size_t n, size_t n_max, unsigned seed)
{
    static const char *const numbers[] = {
        "0",  "1",  "2",  "3",   "4",   "5",  "7",   "8",   "15",  "16",  "24",    "32",
        "33", "48", "64", "100", "128", "-1", "255", "256", "0.5", "1e9", "65536", "4294967295"};
    size_t at = 0, end, first = seed % (n + 1);
    for (size_t i = 0; i < n; i++) {
        at = (first + i) % n;
        if (data[at] >= '0' && data[at] <= '9' && (at == 0 || data[at - 1] == ':'))
            break;
    }
    for (end = at; end < n && strchr("0123456789.e-", data[end]) != NULL && data[end] != 0;)
        end++;
    const char *number = numbers[seed / 7 % (sizeof numbers / sizeof *numbers)];
    size_t size = strlen(number);
    if (end == at || n - (end - at) + size > n_max)
        return n;
    memmove(data + at + size, data + end, n - end);
    memcpy(data + at, number, size);
    return n - (end - at) + size;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t n_max, unsigned seed)
{
    if (n < 24 || seed % 32 == 0)
        n = start_again(data, n_max, seed);
    if (n > TAIL && data[0] == '{' && seed % 4 != 0) {
        memcpy(data + n - TAIL, &seed, TAIL);
        return change_number(data, n, n_max, seed / 4);
    }
    size_t head = n < 1600 ? n : 1600; /* of a GGUF file: its structure */
    if (seed % 3 != 0 && head > 0 && head < n) {
        LLVMFuzzerMutate(data, head, head);
        return n;
    }
    return LLVMFuzzerMutate(data, n, n_max);
}

/* --- weights for a configuration --- */

typedef struct {
    buffer_t entries, data;
    uint32_t random, strange;
    bool too_large;
} weights_t;

static uint32_t next(weights_t *w)
{
    w->random ^= w->random << 13;
    w->random ^= w->random >> 17;
    w->random ^= w->random << 5;
    return w->random;
}

/* Values around 1/4, and now and then any pattern at all. */
static void add_values(weights_t *w, const model_tensor_t *tensor, uint64_t n, uint32_t n_experts)
{
    for (uint64_t i = 0; i < n; i++) {
        uint32_t random = next(w);
        bool any = w->strange != 0 && random % (1u << w->strange) == 0;
        uint16_t half = any ? (uint16_t)(random >> 8)
                            : (uint16_t)((random & 0x8000) | 0x3d00 | (random >> 16 & 0x1ff));
        uint32_t whole = (uint32_t)half << 16;
        int64_t id = (int64_t)(i % tensor->columns) % n_experts;
        if (tensor->type == QTYPE_BF16)
            buffer_append(&w->data, &half, sizeof half);
        else if (tensor->type == QTYPE_F32)
            buffer_append(&w->data, &whole, sizeof whole);
        else
            buffer_append(&w->data, &id, sizeof id);
    }
}

/* One stored tensor of the outline's view; `together`: all experts in one, [experts, in, out]. */
static void add_tensor(weights_t *w, const model_tensor_t *tensor, const char *name, bool together,
                       uint32_t n_experts)
{
    uint64_t columns = tensor->columns, rows = tensor->rows, n = columns * rows;
    const char *type = tensor->type == QTYPE_BF16   ? "BF16"
                       : tensor->type == QTYPE_F32 ? "F32"
                       : tensor->type == QTYPE_I64 ? "I64" : NULL;
    n *= together ? n_experts : 1;
    if (type == NULL || n > WEIGHT_BYTES_MAX || w->data.size > WEIGHT_BYTES_MAX) {
        w->too_large = true;
        return;
    }
    char *key = mem_format("\"%s\":", name);
    bool there = strstr(buffer_text(&w->entries), key) != NULL; /* a head that is the embedding */
    free(key);
    if (there)
        return;
    size_t begin = w->data.size;
    add_values(w, tensor, n, n_experts > 0 ? n_experts : 1);
    buffer_format(&w->entries, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[",
                  w->entries.size > 0 ? "," : "", name, type);
    if (together)
        buffer_format(&w->entries, "%u,", n_experts);
    if (together && rows > 1)
        buffer_format(&w->entries, "%llu,%llu", (unsigned long long)columns,
                      (unsigned long long)rows);
    else if (rows > 1)
        buffer_format(&w->entries, "%llu,%llu", (unsigned long long)rows,
                      (unsigned long long)columns);
    else
        buffer_format(&w->entries, "%llu", (unsigned long long)columns);
    buffer_format(&w->entries, "],\"data_offsets\":[%zu,%zu]}", begin, w->data.size);
}

/* "model.layers.%u.mlp.experts.%u.up_proj.weight" with both numbers. */
static void name_of(const char *format, uint32_t layer, uint32_t expert, char out[192])
{
    size_t n = 0;
    uint32_t numbers[2] = {layer, expert}, i = 0;
    for (const char *at = format; *at != 0 && n < 160; at++) {
        if (at[0] == '%' && at[1] == 'u') {
            n += (size_t)snprintf(out + n, 192 - n, "%u", numbers[i++ % 2]);
            at++;
        } else {
            out[n++] = *at;
        }
    }
    out[n] = 0;
}

static void add_role(weights_t *w, const model_t *model, model_role_t role, uint32_t layer)
{
    const model_tensor_t *tensor = model_tensor(model, role, layer);
    if (tensor == NULL || w->too_large)
        return;
    const char *first = strstr(tensor->name, "%u");
    bool once = first == NULL, each = !once && strstr(first + 2, "%u") != NULL;
    uint32_t n_experts = model_config(model)->experts.n;
    bool together = !once && !each && strstr(tensor->name, ".experts.") != NULL;
    char name[192];
    if (once && layer > 0)
        return;
    for (uint32_t expert = 0; expert < (each ? n_experts : 1) && !w->too_large; expert++) {
        name_of(tensor->name, layer, expert, name);
        add_tensor(w, tensor, name, together, n_experts);
    }
}

static void write_file(const char *name, const void *a, size_t n_a, const void *b, size_t n_b,
                       const void *c, size_t n_c)
{
    char path[64];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wbe");
    CHECK(file != NULL);
    CHECK(fwrite(a, 1, n_a, file) == n_a && fwrite(b, 1, n_b, file) == n_b &&
          fwrite(c, 1, n_c, file) == n_c);
    CHECK(fclose(file) == 0);
}

/* The model of a configuration, with weights; false when it is none, or too large. */
static bool make_model(const char *config, size_t n, uint32_t seed, model_t **own_out)
{
    model_t *outline;
    if (model_outline_open_bytes("fuzz", config, n, &outline) != STATUS_OK)
        return false;
    const model_config_t *shape = model_config(outline);
    weights_t w = {.random = seed | 1, .strange = seed >> 8 & 1 ? 8 + (seed >> 9 & 7) : 0};
    w.too_large = shape->n_layers > LAYERS_MAX || shape->vocab > VOCAB_MAX;
    for (uint32_t layer = 0; layer < shape->n_layers && !w.too_large; layer++)
        for (int role = 0; role < MODEL_N_ROLES; role++)
            add_role(&w, outline, (model_role_t)role, layer);
    model_close(outline);
    bool opened = false;
    if (!w.too_large) {
        buffer_t header = {0};
        buffer_format(&header, "{%s}", buffer_text(&w.entries));
        uint64_t length = header.size;
        write_file("config.json", config, n, "", 0, "", 0);
        write_file("model.safetensors", &length, sizeof length, header.data, header.size,
                   w.data.data, w.data.size);
        buffer_release(&header);
        opened = model_open(folder, own_out) == STATUS_OK;
    }
    buffer_release(&w.entries);
    buffer_release(&w.data);
    return opened;
}

/* --- loading and running --- */

static bool run_steps(stage_t *stage, uint32_t vocab)
{
    uint32_t ids[N_FIRST + 1], blocks[1] = {0};
    for (uint32_t i = 0; i <= N_FIRST; i++)
        ids[i] = i * 7 % vocab;
    step_open_t open = {.n_prompt = N_FIRST, .ids = ids, .sampling = sampling_default};
    head_t *head = head_new(stage);
    bool good = true;
    for (uint32_t i = 0; good && i < 2; i++) {
        step_entry_t entry = {.position = i * N_FIRST, .n_tokens = i ? 1 : N_FIRST, .n_blocks = 1,
                              .n_logits = 1, .sample = true, .ids = ids + i * N_FIRST,
                              .blocks = blocks};
        step_plan_t plan = {.kind = STEP_RUN, .step = i + 1, .n_opens = 1 - i, .n_entries = 1,
                            .n_tokens = entry.n_tokens, .n_blocks = 1, .n_logits = 1,
                            .n_samples = 1, .opens = &open, .entries = &entry};
        step_result_t result;
        good = stage_run(stage, &plan) == STATUS_OK &&
               head_run(head, &plan, NULL, NULL, &result) == STATUS_OK;
        CHECK(!good || (result.n == 1 &&
                        (result.drawn[0].failed || result.drawn[0].sampled.id < vocab)));
    }
    head_free(head);
    return good;
}

/* Whether it was loaded and, whole, ran. */
static bool load(const model_t *model, uint32_t seed)
{
    const model_config_t *shape = model_config(model);
    uint32_t tp = 1 + (seed >> 3 & 3);
    if (shape->n_layers > LAYERS_MAX || shape->vocab > VOCAB_MAX || shape->hidden > WIDTH_MAX ||
        shape->n_heads * shape->head_dim > WIDTH_MAX || shape->ffn > WIDTH_MAX)
        return false;
    bool good = true;
    for (uint32_t slice = 0; good && slice < tp; slice++) {
        rank_config_t config = {.model_path = "fuzz", .model_digest = "fuzz", .tp = tp,
                                .slice = slice, .rank = slice, .stages = 1,
                                .layer_count = shape->n_layers, .threads = 1,
                                .activations_f32 = seed & 1, .context_max = 64,
                                .kv_tokens_max = 64, .prefill_tokens_max = 8, .batch_max = 2,
                                .form_timeout_ms = 1000, .beyond_context = true};
        stage_t *stage = NULL;
        good = stage_open(&config, model, &stage) == STATUS_OK;
        if (good && tp == 1)
            good = run_steps(stage, shape->vocab);
        if (stage != NULL)
            stage_close(stage);
    }
    return good;
}

/* The configurations are right ones, whole and cut: else the mutator would begin with refusals. */
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    setenv("SHOAL_ISA", "ref", 1);
    CHECK(mkdtemp(folder) != NULL);
    atexit(remove_folder);
    for (size_t i = 0; i < N_CONFIGS; i++)
        for (uint32_t seed = 0; seed < 10; seed += seed == 1 ? 7 : 1) { /* f32, two slices */
            model_t *model = NULL;
            if (!make_model(load_configs[i], strlen(load_configs[i]), seed, &model) ||
                !load(model, seed)) {
                fprintf(stderr, "configuration %zu, seed %u: %s\n", i, seed, status_text());
                abort();
            }
            model_close(model);
        }
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    uint32_t seed = 0;
    model_t *model = NULL;
    if (n <= TAIL)
        return 0;
    memcpy(&seed, data + n - TAIL, TAIL);
    /* A copy of its own length, so that a read past the end is seen. */
    uint8_t *bytes = mem_new(n, 1);
    memcpy(bytes, data, n);
    bool opened = data[0] == '{' ? make_model((const char *)bytes, n - TAIL, seed, &model)
                                 : model_open_bytes("fuzz", bytes, n, &model) == STATUS_OK;
    if (opened) {
        load(model, seed);
        model_close(model);
    }
    free(bytes);
    return 0;
}
