/* A sealed model whose weights were changed is not served: each rank checks what it maps, and names
 * the file. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/model/manifest.h"
#include "copies.h"
#include "eval_run.h"

static const char *const files[] = {"config.json", "generation_config.json", "model.safetensors"};
enum { N_FILES = 3 };

static void on_file(void *context, const char *name, const char *problem)
{
    (void)context, (void)name;
    assert_null(problem);
}

static void test_a_changed_weight_of_a_sealed_model_is_named(void **state)
{
    (void)state;
    char dir[] = "/tmp/shoal-seal-XXXXXX", from[512], to[64], words[2048];
    struct stat about;
    eval_result_t result;
    assert_non_null(mkdtemp(dir));
    for (size_t i = 0; i < N_FILES; i++) {
        snprintf(from, sizeof from, "%s/llama-tied-f32/%s", SHOAL_TEST_DATA, files[i]);
        snprintf(to, sizeof to, "%s/%s", dir, files[i]);
        copies_file(from, to);
    }
    assert_int_equal(manifest_seal(dir, NULL, on_file, NULL), STATUS_OK);
    json_t *ids = json_loads("[[0, 5, 9, 200]]", 0, NULL);
    eval_args_t args = {.model = dir, .ids = ids, .threads = 1, .f32 = true, .tp = 2};
    eval_run(&args, &result);
    eval_release(&result);
    assert_int_equal(stat(to, &about), 0);
    copies_flip(to, about.st_size / 2, 1);
    assert_int_not_equal(eval_run_failing(&args, words, sizeof words), 0);
    assert_non_null(strstr(words, "model.safetensors"));
    copies_flip(to, about.st_size / 2, 1);
    eval_run(&args, &result);
    eval_release(&result);
    json_decref(ids);
    copies_remove(dir);
}

/* A seal is kept beside the file and not beside links to it, whatever these are called. */
static void check_link(const char *file_name, const char *link_name)
{
    char dir[] = "/tmp/shoal-link-XXXXXX", file[64], other[64], link[100], words[2048];
    char *golden = eval_golden("gguf-llama-q4_0/model.gguf");
    struct stat about;
    assert_non_null(mkdtemp(dir));
    snprintf(file, sizeof file, "%s/%s", dir, file_name);
    snprintf(other, sizeof other, "%s/other", dir);
    snprintf(link, sizeof link, "%s/%s", other, link_name);
    assert_int_equal(mkdir(other, 0700), 0);
    copies_file(golden, file);
    assert_int_equal(manifest_seal(file, NULL, on_file, NULL), STATUS_OK);
    assert_int_equal(symlink(file, link), 0);
    json_t *ids = json_loads("[[0, 5, 9, 200]]", 0, NULL);
    eval_args_t args = {.model = link, .ids = ids, .threads = 1, .tp = 2};
    eval_result_t result;
    eval_run(&args, &result);
    eval_release(&result);
    assert_int_equal(stat(file, &about), 0);
    copies_flip(file, about.st_size - 100, 1);
    assert_int_not_equal(eval_run_failing(&args, words, sizeof words), 0);
    assert_non_null(strstr(words, file_name));
    assert_non_null(strstr(words, "seal"));
    json_decref(ids);
    free(golden);
    assert_int_equal(unlink(link), 0);
    assert_int_equal(rmdir(other), 0);
    copies_remove(dir);
}

static void test_a_link_to_a_sealed_file_leads_to_its_seal(void **state)
{
    (void)state;
    check_link("model.gguf", "link.gguf");
    check_link("model-00001-of-00001.gguf", "model-00001-of-00001.gguf");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_changed_weight_of_a_sealed_model_is_named),
        cmocka_unit_test(test_a_link_to_a_sealed_file_leads_to_its_seal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
