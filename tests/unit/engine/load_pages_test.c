/* What loading reads and keeps: a rank fetches its slice of the file and no more, gives the
 * pages of what it has packed back, and makes rows on several threads as one would. */
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/memory.h"
#include "common/model/source.h"
#include "worker/engine/rank.h"
#include "worker/engine/stage_read.h"

enum { HIDDEN = 512, FFN = 2048, LAYERS = 4, HEADS = 8, KV_HEADS = 4, VOCAB = 4096, PAGE = 4096 };

static char room[512], weights_path[640];

/* ---- a model of some 40 MB ---- */

typedef struct {
    json_t *header;
    uint64_t at;
} file_draft_t;

static void add_tensor(file_draft_t *draft, const char *name, uint64_t rows, uint64_t columns)
{
    uint64_t n = rows * (columns ? columns : 1) * 2;
    json_t *shape = json_pack("[I]", (json_int_t)rows);
    if (columns)
        json_array_append_new(shape, json_integer((json_int_t)columns));
    json_t *entry = json_pack("{s:s,s:o,s:[I,I]}", "dtype", "BF16", "shape", shape, "data_offsets",
                              (json_int_t)draft->at, (json_int_t)(draft->at + n));
    assert_non_null(entry);
    json_object_set_new(draft->header, name, entry);
    draft->at += n;
}

static void add_layer(file_draft_t *draft, uint32_t layer)
{
    static const struct {
        const char *name;
        uint32_t rows, columns;
    } parts[] = {
        {"input_layernorm", HIDDEN, 0},
        {"post_attention_layernorm", HIDDEN, 0},
        {"self_attn.q_proj", HIDDEN, HIDDEN},
        {"self_attn.k_proj", HIDDEN / HEADS * KV_HEADS, HIDDEN},
        {"self_attn.v_proj", HIDDEN / HEADS * KV_HEADS, HIDDEN},
        {"self_attn.o_proj", HIDDEN, HIDDEN},
        {"mlp.gate_proj", FFN, HIDDEN},
        {"mlp.up_proj", FFN, HIDDEN},
        {"mlp.down_proj", HIDDEN, FFN},
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        char name[96];
        snprintf(name, sizeof name, "model.layers.%u.%s.weight", layer, parts[i].name);
        add_tensor(draft, name, parts[i].rows, parts[i].columns);
    }
}

static void write_config(void)
{
    char path[128];
    snprintf(path, sizeof path, "%s/config.json", room);
    json_t *config = json_pack(
        "{s:[s],s:s,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:f,s:f,s:b,s:s}", "architectures",
        "LlamaForCausalLM", "model_type", "llama", "hidden_size", HIDDEN, "intermediate_size", FFN,
        "num_hidden_layers", LAYERS, "num_attention_heads", HEADS, "num_key_value_heads", KV_HEADS,
        "vocab_size", VOCAB, "max_position_embeddings", 256, "rms_norm_eps", 1e-5, "rope_theta",
        1e4, "tie_word_embeddings", 0, "hidden_act", "silu");
    assert_non_null(config);
    assert_int_equal(json_dump_file(config, path, 0), 0);
    json_decref(config);
}

static int setup(void **state)
{
    (void)state;
    /* Where the tests run, not /tmp, which may be memory whose pages never leave it. */
    char here[sizeof room - 32];
    assert_non_null(getcwd(here, sizeof here));
    snprintf(room, sizeof room, "%s/shoal-pages-XXXXXX", here);
    assert_non_null(mkdtemp(room));
    snprintf(weights_path, sizeof weights_path, "%s/model.safetensors", room);
    write_config();
    file_draft_t draft = {.header = json_object()};
    add_tensor(&draft, "model.embed_tokens.weight", VOCAB, HIDDEN);
    add_tensor(&draft, "lm_head.weight", VOCAB, HIDDEN);
    add_tensor(&draft, "model.norm.weight", HIDDEN, 0);
    for (uint32_t i = 0; i < LAYERS; i++)
        add_layer(&draft, i);
    char *text = json_dumps(draft.header, JSON_COMPACT);
    uint64_t size = (strlen(text) + 7) / 8 * 8;
    FILE *file = fopen(weights_path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(&size, 1, 8, file), 8);
    fprintf(file, "%-*s", (int)size, text);
    uint32_t random = 1;
    for (uint64_t i = 0; i < draft.at / 2; i++) {
        random = random * 1664525 + 1013904223;
        uint16_t value = (uint16_t)(0x3c00 | (random >> 16 & 0x80ff)); /* about 0.01, both signs */
        assert_int_equal(fwrite(&value, 1, 2, file), 2);
    }
    assert_int_equal(fflush(file), 0);
    assert_int_equal(fsync(fileno(file)), 0); /* only clean pages can be dropped */
    assert_int_equal(fclose(file), 0);
    free(text);
    json_decref(draft.header);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    char path[128];
    snprintf(path, sizeof path, "%s/config.json", room);
    unlink(path);
    unlink(weights_path);
    return rmdir(room);
}

static rank_config_t slice_config(uint32_t slice, uint32_t tp)
{
    return (rank_config_t){
        .model_path = room,
        .model_digest = "sha256:0",
        .tp = tp,
        .stages = 1,
        .rank = slice,
        .slice = slice,
        .layer_count = LAYERS,
        .threads = 2,
        .context_max = 128,
        .kv_tokens_max = 256,
        .prefill_tokens_max = 32,
    };
}

/* ---- what is read ---- */

static void drop_file_pages(void)
{
    int fd = open(weights_path, O_RDONLY);
    assert_true(fd >= 0);
    assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
    close(fd);
}

/* The share of the file's bytes [first, end) that is in the page cache. */
static double share_in_memory(uint64_t first, uint64_t end)
{
    int fd = open(weights_path, O_RDONLY);
    struct stat info;
    assert_int_equal(fstat(fd, &info), 0);
    assert_true(end <= (uint64_t)info.st_size);
    size_t n_pages = ((size_t)info.st_size + PAGE - 1) / PAGE;
    unsigned char *there = mem_new(n_pages, 1);
    void *map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(map, MAP_FAILED);
    assert_int_equal(mincore(map, (size_t)info.st_size, there), 0);
    uint64_t n = 0, all = end / PAGE - first / PAGE;
    for (uint64_t p = first / PAGE; p < end / PAGE; p++)
        n += there[p] & 1;
    munmap(map, (size_t)info.st_size);
    close(fd);
    free(there);
    return (double)n / (double)all;
}

/* The share of rows [first, end) of a tensor. */
static double rows_in_memory(const source_t *source, const char *name, uint64_t first, uint64_t end)
{
    const source_tensor_t *tensor = source_tensor(source, name);
    const source_tensor_t *embedding = source_tensor(source, "model.embed_tokens.weight");
    assert_non_null(tensor);
    struct stat info;
    assert_int_equal(stat(weights_path, &info), 0);
    uint64_t data = 0; /* all tensors' bytes: what is before them is the header */
    for (size_t i = 0; i < source_n_tensors(source); i++)
        data += source_tensor_at(source, i)->bytes;
    uint64_t at = (uint64_t)info.st_size - data + (uint64_t)(tensor->data - embedding->data);
    return share_in_memory(at + first * tensor->row_bytes, at + end * tensor->row_bytes);
}

static void test_a_rank_fetches_its_slice_of_the_file_and_no_more(void **state)
{
    (void)state;
    struct stat info;
    assert_int_equal(stat(weights_path, &info), 0);
    drop_file_pages();
    if (share_in_memory(0, (uint64_t)info.st_size) > 0.01) {
        print_message("this file system keeps its pages: not shown here\n");
        skip();
    }
    rank_t *rank;
    rank_config_t config = slice_config(1, 4);
    assert_int_equal(rank_open(&config, &rank), STATUS_OK);
    source_t *source;
    assert_int_equal(source_open(room, &source), STATUS_OK);
    const char *up = "model.layers.2.mlp.up_proj.weight";
    const char *down = "model.layers.2.mlp.down_proj.weight";
    double own = rows_in_memory(source, up, FFN / 4, FFN / 2);
    double others = rows_in_memory(source, up, FFN / 2, FFN);
    double down_share = rows_in_memory(source, down, 0, HIDDEN);
    source_close(source);
    rank_close(rank);
    assert_true(own > 0.99);
    assert_true(others < 0.05);
    assert_true(down_share > 0.99); /* a piece of every row */
}

/* ---- what is kept ---- */

/* Bytes of the weight file that this process has mapped at the moment. */
static uint64_t mapped_now(void)
{
    char line[512];
    bool ours = false;
    uint64_t total = 0;
    unsigned long long kib;
    FILE *file = fopen("/proc/self/smaps", "r");
    assert_non_null(file);
    while (fgets(line, sizeof line, file)) {
        if (strchr(line, '-') != NULL && strchr(line, ':') != NULL && strstr(line, " r") != NULL)
            ours = strstr(line, "model.safetensors") != NULL;
        else if (ours && sscanf(line, "Rss: %llu kB", &kib) == 1)
            total += (uint64_t)kib << 10;
    }
    fclose(file);
    return total;
}

static void test_pages_of_packed_weights_leave_the_process(void **state)
{
    (void)state;
    rank_t *rank;
    rank_config_t config = slice_config(0, 1);
    struct stat info;
    assert_int_equal(stat(weights_path, &info), 0);
    drop_file_pages();
    if (share_in_memory(0, (uint64_t)info.st_size) > 0.01) {
        print_message("this file system keeps its pages: not shown here\n");
        skip();
    }
    assert_int_equal(rank_open(&config, &rank), STATUS_OK);
    assert_true(rank_weight_bytes(rank) > (uint64_t)info.st_size / 2);
    assert_int_equal(mapped_now(), 0); /* the next test shows that pages would be seen */
    rank_close(rank);
}

static void test_rows_that_were_forgotten_are_read_again(void **state)
{
    (void)state;
    source_t *source;
    assert_int_equal(source_open(room, &source), STATUS_OK);
    const source_tensor_t *tensor = source_tensor(source, "lm_head.weight");
    uint8_t *before = mem_new(tensor->bytes, 1);
    memcpy(before, tensor->data, tensor->bytes);
    assert_true(mapped_now() >= tensor->bytes);
    source_want_rows(source, tensor, 0, tensor->rows);
    source_forget_rows(source, tensor, 0, tensor->rows);
    assert_true(mapped_now() < tensor->bytes / 4);
    assert_memory_equal(before, tensor->data, tensor->bytes);
    free(before);
    source_close(source);
}

/* Where forgetting would be losing. */
static void test_bytes_in_the_callers_memory_are_never_dropped(void **state)
{
    (void)state;
    struct stat info;
    char path[128];
    snprintf(path, sizeof path, "%s/config.json", room);
    json_t *config = json_load_file(path, 0, NULL);
    char *text = json_dumps(config, 0);
    assert_int_equal(stat(weights_path, &info), 0);
    uint8_t *bytes = mmap(NULL, (size_t)info.st_size, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(bytes, MAP_FAILED);
    int fd = open(weights_path, O_RDONLY);
    assert_int_equal(read(fd, bytes, (size_t)info.st_size), info.st_size);
    close(fd);
    source_t *source;
    assert_int_equal(source_open_directory_bytes(room, text, strlen(text), bytes,
                                                 (size_t)info.st_size, &source),
                     STATUS_OK);
    const source_tensor_t *tensor = source_tensor(source, "lm_head.weight");
    uint8_t *before = mem_new(tensor->bytes, 1);
    memcpy(before, tensor->data, tensor->bytes);
    source_forget_rows(source, tensor, 0, tensor->rows);
    assert_memory_equal(before, tensor->data, tensor->bytes);
    free(before);
    source_close(source);
    munmap(bytes, (size_t)info.st_size);
    free(text);
    json_decref(config);
}

/* ---- rows that have to be made ---- */

static void test_several_threads_make_the_rows_that_one_makes(void **state)
{
    (void)state;
    model_t *model;
    assert_int_equal(model_open_quantized(room, "q8", &model), STATUS_OK);
    const model_tensor_t *tensor = model_tensor(model, MODEL_FFN_UP, 1);
    assert_null(tensor->data);
    uint64_t first = 5, count = tensor->rows - 5 - 3; /* no whole groups */
    uint8_t *one = mem_new(count * tensor->row_bytes, 1);
    uint8_t *many = mem_new(count * tensor->row_bytes, 1);
    assert_int_equal(model_read_rows(tensor, first, count, one), STATUS_OK);
    for (uint32_t threads = 1; threads <= 5; threads += 2) {
        stage_t stage = {.model = model};
        memset(many, 0xee, count * tensor->row_bytes);
        assert_int_equal(pool_open(threads, NULL, &stage.readers), STATUS_OK);
        assert_int_equal(stage_read_rows(&stage, tensor, first, count, many), STATUS_OK);
        assert_memory_equal(one, many, count * tensor->row_bytes);
        pool_close(stage.readers);
    }
    free(one);
    free(many);
    model_close(model);
}

static void test_a_row_that_cannot_be_made_is_named_whatever_thread_found_it(void **state)
{
    (void)state;
    model_t *model;
    source_t *source;
    struct stat info;
    assert_int_equal(source_open(room, &source), STATUS_OK);
    const char *name = "model.layers.1.mlp.up_proj.weight";
    const source_tensor_t *stored = source_tensor(source, name);
    const source_tensor_t *head = source_tensor(source, "model.embed_tokens.weight");
    assert_int_equal(stat(weights_path, &info), 0);
    uint64_t data = 0;
    for (size_t i = 0; i < source_n_tensors(source); i++)
        data += source_tensor_at(source, i)->bytes;
    uint64_t at = (uint64_t)info.st_size - data + (uint64_t)(stored->data - head->data);
    uint64_t bad = at + 1999 * stored->row_bytes;
    source_close(source);
    const uint16_t infinite = 0x7f80;
    uint16_t before;
    int fd = open(weights_path, O_RDWR);
    assert_int_equal(pread(fd, &before, 2, (off_t)bad), 2);
    assert_int_equal(pwrite(fd, &infinite, 2, (off_t)bad), 2);
    assert_int_equal(model_open_quantized(room, "q8", &model), STATUS_OK);
    const model_tensor_t *tensor = model_tensor(model, MODEL_FFN_UP, 1);
    uint8_t *out = mem_new(tensor->bytes, 1);
    stage_t stage = {.model = model};
    assert_int_equal(pool_open(4, NULL, &stage.readers), STATUS_OK);
    assert_int_equal(stage_read_rows(&stage, tensor, 0, tensor->rows, out), STATUS_INVALID);
    assert_non_null(strstr(status_text(), name));
    assert_non_null(strstr(status_text(), "1999"));
    pool_close(stage.readers);
    free(out);
    model_close(model);
    assert_int_equal(pwrite(fd, &before, 2, (off_t)bad), 2);
    assert_int_equal(fsync(fd), 0);
    close(fd);
}

/* ---- images ---- */

static void test_a_weight_is_its_specification_and_its_image(void **state)
{
    (void)state;
    const kernel_ops_t *ops = kernels_cpu();
    kdevice_t *device;
    const kdevice_options_t options = {.threads = 3};
    assert_int_equal(ops->device_open(&options, &device), STATUS_OK);
    enum { K = 256, ROWS = 4100 };
    uint16_t *rows = mem_new(ROWS, K * sizeof *rows);
    for (size_t i = 0; i < (size_t)ROWS * K; i++)
        rows[i] = (uint16_t)(0x3c00 + i % 251);
    const uint32_t edges[] = {0, K};
    kweight_part_t part = {.qtype = QTYPE_BF16, .rows = rows, .bytes = (size_t)ROWS * K * 2,
                           .n_rows = ROWS};
    const kweight_spec_t spec = {.name = "w", .parts = &part, .n_parts = 1, .k_total = K,
                                 .leaf_edges = edges, .n_leaves = 1, .leaf_end = 1};
    kweight_t *packed, *opened = NULL;
    assert_int_equal(ops->weight_pack(device, &spec, &packed), STATUS_OK);
    size_t bytes = ops->weight_info(packed).packed_bytes;
    size_t room_bytes = (bytes + 63) / 64 * 64;
    uint8_t *image = aligned_alloc(64, room_bytes);
    assert_non_null(image);
    memcpy(image, ops->weight_image(packed), bytes);
    part.rows = NULL; /* not read */
    assert_int_equal(ops->weight_open_image(device, &spec, image, bytes, &opened), STATUS_OK);
    assert_ptr_equal(ops->weight_image(opened), image); /* used where it lies */
    kweight_info_t info = ops->weight_info(opened), wanted = ops->weight_info(packed);
    assert_int_equal(info.n, wanted.n);
    assert_int_equal(info.k, wanted.k);
    assert_int_equal(info.input_row_bytes, wanted.input_row_bytes);
    ops->weight_release(opened);
    const size_t wrong[] = {0, 1, bytes - 1, bytes + 1, 2 * bytes};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_int_equal(ops->weight_open_image(device, &spec, image, wrong[i], &opened),
                         STATUS_INVALID);
    assert_memory_equal(image, ops->weight_image(packed), bytes); /* nor written or released */
    ops->weight_release(packed);
    ops->device_close(device);
    free(image);
    free(rows);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_rank_fetches_its_slice_of_the_file_and_no_more),
        cmocka_unit_test(test_pages_of_packed_weights_leave_the_process),
        cmocka_unit_test(test_rows_that_were_forgotten_are_read_again),
        cmocka_unit_test(test_bytes_in_the_callers_memory_are_never_dropped),
        cmocka_unit_test(test_several_threads_make_the_rows_that_one_makes),
        cmocka_unit_test(test_a_row_that_cannot_be_made_is_named_whatever_thread_found_it),
        cmocka_unit_test(test_a_weight_is_its_specification_and_its_image),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
