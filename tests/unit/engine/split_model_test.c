/* A model that is split into several files gives the bytes of the whole one, through the loader of
 * every rank. */
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "tests/unit/engine/eval_run.h"
#include "tests/unit/model/gguf_cut.h"
#include "tests/unit/model/safetensors_draft.h"

static json_t *read_ids(const char *name)
{
    char *file = mem_format("%s/golden.json", name), *path = eval_golden(file);
    json_t *golden = json_load_file(path, 0, NULL), *ids = json_array();
    const json_t *prompts = json_object_get(golden, "prompts");
    for (size_t i = 0; i < json_array_size(prompts); i++)
        json_array_append(ids, json_object_get(json_array_get(prompts, i), "input_ids"));
    assert_true(json_array_size(ids) > 0 && json_is_array(json_array_get(ids, 0)));
    json_decref(golden);
    free(file);
    free(path);
    return ids;
}

static uint64_t logits(const char *model, const json_t *ids, uint32_t tp, bool f32)
{
    eval_result_t result;
    const eval_args_t args = {.model = model, .ids = ids, .threads = 1, .tp = tp, .f32 = f32};
    eval_run(&args, &result);
    uint64_t hash = eval_hash_rows(&result);
    eval_release(&result);
    return hash;
}

static void check_model(const char *name)
{
    char *file = mem_format("%s/model.gguf", name), *whole = eval_golden(file);
    char *folder = folder_new();
    json_t *ids = read_ids(name);
    gguf_cut(whole, folder, "split", 3, false);
    for (uint32_t part = 1; part <= 3; part++) {
        char *path = gguf_cut_path(folder, "split", part, 3);
        uint32_t tp = part == 2 ? 2 : 1;
        assert_int_equal(logits(path, ids, tp, part == 3), logits(whole, ids, tp, part == 3));
        free(path);
    }
    /* Native and exact results differ, so the comparison is one. */
    assert_int_not_equal(logits(whole, ids, 1, true), logits(whole, ids, 1, false));
    json_decref(ids);
    folder_remove(folder);
    free(whole);
    free(file);
}

static void test_a_split_model_gives_the_bytes_of_the_whole_one(void **state)
{
    (void)state;
    check_model("gguf-llama-q4_0");
    check_model("gguf-mixtral-q4_1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_split_model_gives_the_bytes_of_the_whole_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
