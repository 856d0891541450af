/* A model that also sees, as its publishers write it (the text part's configuration nested, the
 * names of its tensors longer, weights for pictures beside them), gives the bytes of the text part
 * alone. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/buffer.h"
#include "common/base/memory.h"
#include "common/model/model.h"
#include "tests/unit/engine/eval_run.h"
#include "tests/unit/engine/recorded.h"
#include "tests/unit/model/safetensors_draft.h"

#define RECORDED "gemma3-text"

static void read_file(const char *path, buffer_t *out)
{
    char piece[65536];
    FILE *file = fopen(path, "rbe");
    assert_non_null(file);
    for (size_t n; (n = fread(piece, 1, sizeof piece, file)) > 0;)
        buffer_append(out, piece, n);
    fclose(file);
}

/* "model.x" becomes `prefix` and "x"; a tensor of pictures comes behind all. */
static void write_weights(const char *folder, const char *prefix, const char *pictures)
{
    buffer_t stored = {0}, out = {0};
    char *path = eval_golden(RECORDED "/model.safetensors");
    read_file(path, &stored);
    uint64_t n_header;
    memcpy(&n_header, stored.data, sizeof n_header);
    size_t n_data = stored.size - 8 - (size_t)n_header;
    json_t *header = json_loadb((const char *)stored.data + 8, (size_t)n_header, 0, NULL);
    json_t *renamed = json_object(), *value;
    const char *key;
    assert_non_null(header);
    json_object_foreach(header, key, value) {
        bool is_model = strncmp(key, "model.", 6) == 0;
        char *name = mem_format("%s%s", is_model ? prefix : "", is_model ? key + 6 : key);
        json_object_set(renamed, name, value);
        free(name);
    }
    json_object_set_new(renamed, pictures,
                        json_pack("{s:s,s:[i,i],s:[I,I]}", "dtype", "F32", "shape", 2, 3,
                                  "data_offsets", (json_int_t)n_data, (json_int_t)n_data + 24));
    char *text = json_dumps(renamed, JSON_COMPACT);
    uint64_t n_text = strlen(text);
    buffer_append(&out, &n_text, sizeof n_text);
    buffer_append_text(&out, text);
    buffer_append(&out, stored.data + 8 + n_header, n_data);
    buffer_append(&out, (uint8_t[24]){0}, 24);
    folder_write(folder, "model.safetensors", out.data, out.size);
    free(text);
    json_decref(header);
    json_decref(renamed);
    buffer_release(&stored);
    buffer_release(&out);
    free(path);
}

static void write_config(const char *folder, bool newer)
{
    char *path = eval_golden(RECORDED "/config.json");
    json_t *text = json_load_file(path, 0, NULL), *whole = json_object();
    assert_non_null(text);
    if (newer) { /* as transformers 5 writes it */
        json_t *types = json_array();
        for (int i = 0; i < 4; i++)
            json_array_append_new(types, json_string(i == 2 ? "full_attention"
                                                            : "sliding_attention"));
        json_object_set_new(text, "layer_types", types);
        json_object_set_new(
            text, "rope_parameters",
            json_pack("{s:{s:s,s:f,s:f},s:{s:s,s:f}}", "full_attention", "rope_type", "linear",
                      "factor", 8.0, "rope_theta", 1000000.0, "sliding_attention", "rope_type",
                      "default", "rope_theta", 10000.0));
        static const char *const gone[] = {"rope_scaling", "rope_theta", "rope_local_base_freq",
                                           "sliding_window_pattern"};
        for (size_t i = 0; i < sizeof gone / sizeof *gone; i++)
            assert_int_equal(json_object_del(text, gone[i]), 0);
    }
    json_object_set_new(whole, "model_type", json_string("gemma3"));
    json_object_set_new(whole, "text_config", text);
    json_object_set_new(whole, "vision_config", json_pack("{s:i}", "hidden_size", 16));
    char *words = json_dumps(whole, 0);
    folder_write_text(folder, "config.json", words);
    free(words);
    json_decref(whole);
    free(path);
}

static uint64_t logits(const char *model, const json_t *ids, uint32_t tp)
{
    eval_result_t result;
    const eval_args_t args = {.model = model, .ids = ids, .threads = 1, .tp = tp};
    eval_run(&args, &result);
    uint64_t hash = eval_hash_rows(&result);
    eval_release(&result);
    return hash;
}

static void test_a_nested_model_gives_the_bytes_of_its_text_part(void **state)
{
    (void)state;
    static const struct {
        const char *prefix, *pictures;
        bool newer;
    } forms[] = {
        {"language_model.model.", "vision_tower.vision_model.post_layernorm.weight", false},
        {"model.language_model.", "model.multi_modal_projector.mm_soft_emb_norm.weight", true},
    };
    recorded_t recorded;
    recorded_open(RECORDED, &recorded);
    for (size_t i = 0; i < 2; i++) {
        char *folder = folder_new(), *tokenizer = eval_golden(RECORDED "/tokenizer.json");
        buffer_t bytes = {0};
        read_file(tokenizer, &bytes);
        folder_write(folder, "tokenizer.json", bytes.data, bytes.size);
        write_config(folder, forms[i].newer);
        write_weights(folder, forms[i].prefix, forms[i].pictures);
        uint32_t tp = (uint32_t)i + 1;
        assert_int_equal(logits(folder, recorded.ids, tp), logits(recorded.model, recorded.ids, tp));
        buffer_release(&bytes);
        free(tokenizer);
        folder_remove(folder);
    }
    recorded_close(&recorded);
}

static void test_a_tensor_of_neither_part_is_refused(void **state)
{
    (void)state;
    model_t *model;
    char *folder = folder_new();
    write_config(folder, false);
    write_weights(folder, "language_model.model.", "audio_tower.weight");
    assert_int_equal(model_open(folder, &model), STATUS_UNSUPPORTED);
    assert_non_null(strstr(status_text(), "audio_tower.weight is no part"));
    folder_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_nested_model_gives_the_bytes_of_its_text_part),
        cmocka_unit_test(test_a_tensor_of_neither_part_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
