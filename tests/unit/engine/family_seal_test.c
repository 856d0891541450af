/* A sealed model whose weights were changed is not served: each rank checks what it maps, and names
 * the file. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/model/manifest.h"
#include "eval_run.h"

static const char *const files[] = {"config.json", "generation_config.json", "model.safetensors"};
enum { N_FILES = 3 };

static void copy_file(const char *from, const char *to)
{
    char buffer[4096];
    FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
    assert_non_null(in);
    assert_non_null(out);
    for (size_t n; (n = fread(buffer, 1, sizeof buffer, in)) > 0;)
        assert_int_equal(fwrite(buffer, 1, n, out), n);
    fclose(in);
    assert_int_equal(fclose(out), 0);
}

static void on_file(void *context, const char *name, const char *problem)
{
    (void)context, (void)name;
    assert_null(problem);
}

static void flip_byte(const char *path, off_t at)
{
    uint8_t byte;
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &byte, 1, at), 1);
    byte ^= 1;
    assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    close(fd);
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
        copy_file(from, to);
    }
    assert_int_equal(manifest_seal(dir, NULL, on_file, NULL), STATUS_OK);
    json_t *ids = json_loads("[[0, 5, 9, 200]]", 0, NULL);
    eval_args_t args = {.model = dir, .ids = ids, .threads = 1, .f32 = true, .tp = 2};
    eval_run(&args, &result);
    eval_release(&result);
    assert_int_equal(stat(to, &about), 0);
    flip_byte(to, about.st_size / 2);
    assert_int_not_equal(eval_run_failing(&args, words, sizeof words), 0);
    assert_non_null(strstr(words, "model.safetensors"));
    flip_byte(to, about.st_size / 2);
    eval_run(&args, &result);
    eval_release(&result);
    json_decref(ids);
    for (size_t i = 0; i < N_FILES; i++) {
        snprintf(to, sizeof to, "%s/%s", dir, files[i]);
        unlink(to);
    }
    snprintf(to, sizeof to, "%s/manifest.sha256", dir);
    unlink(to);
    assert_int_equal(rmdir(dir), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_changed_weight_of_a_sealed_model_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
