/* A second start from kept weights computes what the first did, to the bit, whatever the weights
 * are stored as and however the model is cut; and it does come from them. Damaged ones change
 * nothing. */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/base/digest.h"
#include "common/model/manifest.h"
#include "copies.h"
#include "eval_run.h"
#include "worker/engine/pack_cache_file.h"

enum { FILES_MAX = 16, FIRST_IMAGE = 4096 };

typedef struct {
    char path[600];
    struct stat about;
} kept_t;

static char cache[64];

static int setup(void **state)
{
    (void)state;
    snprintf(cache, sizeof cache, "/tmp/shoal-kept-XXXXXX");
    assert_non_null(mkdtemp(cache));
    return 0;
}

static uint32_t list_kept(kept_t out[FILES_MAX])
{
    char dir[128];
    uint32_t n = 0;
    snprintf(dir, sizeof dir, "%s/packed", cache);
    DIR *folder = opendir(dir);
    for (struct dirent *entry; folder != NULL && (entry = readdir(folder)) != NULL;) {
        if (entry->d_name[0] == '.')
            continue;
        assert_true(n < FILES_MAX);
        snprintf(out[n].path, sizeof out[n].path, "%s/%s", dir, entry->d_name);
        assert_int_equal(stat(out[n].path, &out[n].about), 0);
        n++;
    }
    if (folder != NULL)
        closedir(folder);
    return n;
}

static int teardown(void **state)
{
    (void)state;
    copies_remove(cache);
    return 0;
}

static uint64_t run(const eval_args_t *args)
{
    eval_result_t result;
    eval_run(args, &result);
    uint64_t hash = eval_hash_rows(&result);
    eval_release(&result);
    return hash;
}

/* So that a file which is used again shows it: its time is set then. */
static void make_old(const char *path)
{
    const struct timespec times[2] = {{.tv_sec = 1000000000}, {.tv_sec = 1000000000}};
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

/* Each file of `before` is still there; whether it is the same one and was used. */
static void check_kept(const kept_t *before, uint32_t n, bool same)
{
    kept_t now[FILES_MAX];
    assert_int_equal(list_kept(now), n);
    for (uint32_t i = 0; i < n; i++) {
        struct stat about;
        assert_int_equal(stat(before[i].path, &about), 0);
        assert_int_equal(about.st_ino == before[i].about.st_ino, same);
        assert_true(about.st_mtim.tv_sec > 1000000000);
    }
}

static void check_model(eval_args_t args)
{
    kept_t kept[FILES_MAX];
    uint32_t tp = args.tp ? args.tp : 1, stages = args.stages ? args.stages : 1;
    assert_int_equal(setup(NULL), 0);
    args.pack_cache = NULL;
    uint64_t wanted = run(&args);
    args.pack_cache = cache;
    assert_int_equal(run(&args), wanted);
    uint32_t n = list_kept(kept);
    /* Each rank has its own; `eval --quantize` runs the model as it is stored too. */
    assert_int_equal(n, tp * stages * (args.quantize ? 2 : 1));
    for (uint32_t i = 0; i < n; i++)
        make_old(kept[i].path);
    assert_int_equal(run(&args), wanted);
    check_kept(kept, n, true);
    for (uint32_t i = 0; i < n; i++) {
        copies_flip(kept[i].path, FIRST_IMAGE, 4);
        make_old(kept[i].path);
    }
    assert_int_equal(run(&args), wanted);
    check_kept(kept, n, false);
    assert_int_equal(teardown(NULL), 0);
}

static void check_golden(const char *name, eval_args_t args)
{
    json_t *ids = json_loads("[[1, 5, 9, 200, 31], [7, 3]]", 0, NULL);
    char *model = eval_golden(name);
    args.model = model;
    args.ids = ids;
    args.threads = 2;
    check_model(args);
    free(model);
    json_decref(ids);
}

static void test_blocks_of_a_gguf_come_back(void **state)
{
    (void)state;
    check_golden("gguf-llama-q8_0/model.gguf", (eval_args_t){.tp = 2});
    check_golden("gguf-llama-kquants/model.gguf", (eval_args_t){.stages = 2});
}

static void test_converted_rows_come_back(void **state)
{
    (void)state;
    check_golden("qwen2-awq-g128", (eval_args_t){.tp = 2});
    check_golden("deepseek-v3-fp8", (eval_args_t){.tp = 2, .f32 = true});
}

static void test_experts_come_back(void **state)
{
    (void)state;
    check_golden("gguf-qwen3moe-q8_0/model.gguf", (eval_args_t){.tp = 2, .stages = 2});
    check_golden("gpt-oss-mxfp4", (eval_args_t){.tp = 1});
}

static void test_weights_quantized_at_load_come_back(void **state)
{
    (void)state;
    check_golden("llama-gqa-bf16", (eval_args_t){.tp = 2, .quantize = "q8"});
}

/* One directory for all of them: no rank takes the weights of another form, mode or cut. */
static void test_forms_of_one_model_do_not_mix(void **state)
{
    (void)state;
    json_t *ids = json_loads("[[1, 5, 9, 200, 31]]", 0, NULL);
    char *model = eval_golden("llama-gqa-bf16");
    const eval_args_t forms[] = {
        {.tp = 1},        {.tp = 1, .f32 = true},       {.tp = 2},
        {.stages = 2},    {.tp = 1, .quantize = "q8"},  {.tp = 1, .quantize = "fp8"},
    };
    enum { N_FORMS = sizeof forms / sizeof *forms };
    uint64_t wanted[N_FORMS];
    kept_t kept[FILES_MAX];
    assert_int_equal(setup(NULL), 0);
    for (uint32_t turn = 0; turn < 3; turn++)
        for (uint32_t i = 0; i < N_FORMS; i++) {
            eval_args_t args = forms[i];
            args.model = model;
            args.ids = ids;
            args.threads = 1;
            args.pack_cache = turn > 0 ? cache : NULL;
            uint64_t hash = run(&args);
            if (turn == 0)
                wanted[i] = hash;
            assert_int_equal(hash, wanted[i]);
        }
    assert_int_equal(list_kept(kept), 8);
    assert_int_equal(teardown(NULL), 0);
    free(model);
    json_decref(ids);
}

/* ---- a sealed model ---- */

static void on_file(void *context, const char *name, const char *problem)
{
    (void)context, (void)name;
    assert_null(problem);
}

static void test_kept_weights_do_not_get_round_a_seal(void **state)
{
    (void)state;
    char model[128], from[512], words[2048];
    kept_t kept[FILES_MAX];
    struct stat about;
    assert_int_equal(setup(NULL), 0);
    snprintf(model, sizeof model, "%s/model.gguf", cache);
    snprintf(from, sizeof from, "%s/gguf-llama-q8_0/model.gguf", SHOAL_TEST_DATA);
    copies_file(from, model);
    assert_int_equal(stat(model, &about), 0);
    json_t *ids = json_loads("[[1, 5, 9, 200, 31]]", 0, NULL);
    eval_args_t args = {.model = model, .ids = ids, .threads = 1, .pack_cache = cache};
    uint64_t wanted = run(&args);
    assert_int_equal(list_kept(kept), 1);
    assert_int_equal(manifest_seal(model, NULL, on_file, NULL), STATUS_OK);
    assert_int_equal(run(&args), wanted); /* read once more, against the seal */
    assert_int_equal(list_kept(kept), 2);
    assert_int_equal(run(&args), wanted);
    assert_int_equal(list_kept(kept), 2);
    copies_flip(model, about.st_size - about.st_size / 4, 4);
    assert_int_not_equal(eval_run_failing(&args, words, sizeof words), 0);
    assert_non_null(strstr(words, "model.gguf"));
    assert_int_equal(list_kept(kept), 2);
    json_decref(ids);
    assert_int_equal(teardown(NULL), 0);
}

static uint64_t entries_of(const char *path)
{
    pack_file_head_t head;
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fread(&head, sizeof head, 1, file), 1);
    fclose(file);
    return head.n_entries;
}

/* A norm is a few bytes of a chunk of the seal: to read each of them again would be to check nearly
 * all of the file at every start. */
static void test_norms_and_embeddings_of_a_sealed_model_are_kept_with_its_weights(void **state)
{
    (void)state;
    enum { NORMS = 7, TABLES = 1 }; /* of this model */
    char model[128], from[512];
    kept_t plain[FILES_MAX], sealed[FILES_MAX];
    assert_int_equal(setup(NULL), 0);
    snprintf(model, sizeof model, "%s/model.gguf", cache);
    snprintf(from, sizeof from, "%s/gguf-llama-q8_0/model.gguf", SHOAL_TEST_DATA);
    copies_file(from, model);
    json_t *ids = json_loads("[[1, 5, 9, 200, 31]]", 0, NULL);
    eval_args_t args = {.model = model, .ids = ids, .threads = 2, .pack_cache = cache};
    uint64_t wanted = run(&args);
    assert_int_equal(list_kept(plain), 1);
    uint64_t n_weights = entries_of(plain[0].path);
    assert_int_equal(unlink(plain[0].path), 0);
    assert_int_equal(manifest_seal(model, NULL, on_file, NULL), STATUS_OK);
    assert_int_equal(run(&args), wanted);
    assert_int_equal(list_kept(sealed), 1);
    assert_int_equal(entries_of(sealed[0].path), n_weights + NORMS + TABLES);
    make_old(sealed[0].path);
    assert_int_equal(run(&args), wanted);
    check_kept(sealed, 1, true);
    copies_flip(sealed[0].path, FIRST_IMAGE, 4); /* the first norm */
    make_old(sealed[0].path);
    assert_int_equal(run(&args), wanted);
    check_kept(sealed, 1, false);
    assert_int_equal(list_kept(sealed), 1);
    make_old(sealed[0].path);
    args.tp = 2; /* slices share the model's table of embeddings */
    assert_int_equal(run(&args), wanted);
    assert_int_equal(list_kept(sealed), 3);
    json_decref(ids);
    assert_int_equal(teardown(NULL), 0);
}

/* A seal of small chunks, so that there is something to check beside the packing. */
static void seal_finely(const char *model)
{
    enum { CHUNK = 4096 };
    char path[160], hex[DIGEST_HEX_SIZE];
    static uint8_t bytes[CHUNK];
    struct stat about;
    assert_int_equal(stat(model, &about), 0);
    assert_int_equal(digest_of_file(model, hex), STATUS_OK);
    snprintf(path, sizeof path, "%s.sha256", model);
    FILE *seal = fopen(path, "w"), *file = fopen(model, "rb");
    assert_true(seal != NULL && file != NULL);
    fprintf(seal, "# shoal manifest 1\n%s  model.gguf\n# chunks %d %lld model.gguf\n", hex, CHUNK,
            (long long)about.st_size);
    for (size_t n; (n = fread(bytes, 1, CHUNK, file)) > 0;) {
        digest_of_bytes(bytes, n, hex);
        fprintf(seal, "#%s\n", hex);
    }
    fclose(file);
    assert_int_equal(fclose(seal), 0);
}

static void test_a_seal_that_is_checked_ahead_of_the_packing_finds_every_changed_byte(void **state)
{
    (void)state;
    static const char *const models[] = {"gguf-llama-q8_0", "gguf-qwen3moe-q8_0"};
    char model[128], from[512], words[2048];
    struct stat about;
    json_t *ids = json_loads("[[1, 5, 9, 200, 31]]", 0, NULL);
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        assert_int_equal(setup(NULL), 0);
        snprintf(model, sizeof model, "%s/model.gguf", cache);
        snprintf(from, sizeof from, "%s/%s/model.gguf", SHOAL_TEST_DATA, models[m]);
        copies_file(from, model);
        assert_int_equal(stat(model, &about), 0);
        eval_args_t args = {.model = model, .ids = ids, .threads = 1};
        uint64_t wanted = run(&args);
        seal_finely(model);
        for (args.threads = 1; args.threads <= 8; args.threads *= 2)
            assert_int_equal(run(&args), wanted);
        args.threads = 4;
        for (off_t eighth = 2; eighth < 8; eighth++) { /* of the weights, in all layers */
            copies_flip(model, about.st_size / 8 * eighth, 4);
            assert_int_not_equal(eval_run_failing(&args, words, sizeof words), 0);
            assert_non_null(strstr(words, "model.gguf is not as sealed"));
            copies_flip(model, about.st_size / 8 * eighth, 4);
        }
        assert_int_equal(teardown(NULL), 0);
    }
    json_decref(ids);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blocks_of_a_gguf_come_back),
        cmocka_unit_test(test_converted_rows_come_back),
        cmocka_unit_test(test_experts_come_back),
        cmocka_unit_test(test_weights_quantized_at_load_come_back),
        cmocka_unit_test(test_forms_of_one_model_do_not_mix),
        cmocka_unit_test(test_kept_weights_do_not_get_round_a_seal),
        cmocka_unit_test(test_norms_and_embeddings_of_a_sealed_model_are_kept_with_its_weights),
        cmocka_unit_test(test_a_seal_that_is_checked_ahead_of_the_packing_finds_every_changed_byte),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
