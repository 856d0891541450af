/* Where a coordinator looks for the model of a deployment: inside its --models alone, by path or name,
 * a GGUF file or a directory with a config.json. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "coordinator/shell_state.h"

static char root[] = "/tmp/shoal-find-XXXXXX";

static void make(const char *name, const char *content)
{
    char *path = mem_format("%s/%s", root, name);
    if (content) {
        FILE *file = fopen(path, "w");
        assert_non_null(file);
        assert_true(fputs(content, file) >= 0);
        assert_int_equal(fclose(file), 0);
    } else {
        assert_int_equal(mkdir(path, 0700), 0);
    }
    free(path);
}

static int make_folders(void **state)
{
    (void)state;
    assert_non_null(mkdtemp(root));
    static const char *const folders[] = {"models", "models/dir", "models/empty", "outside",
                                          "outside/dir2"};
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++)
        make(folders[i], NULL);
    static const char *const directories[] = {"models/dir", "outside/dir2"};
    for (size_t i = 0; i < 2; i++) {
        char *config = mem_format("%s/config.json", directories[i]);
        char *weights = mem_format("%s/model.safetensors", directories[i]);
        make(config, "{}");
        make(weights, "x");
        free(config);
        free(weights);
    }
    make("models/file.gguf", "x");
    make("models/big-00001-of-00002.gguf", "x");
    make("models/big-00002-of-00002.gguf", "x");
    make("models/tail-00002-of-00002.gguf", "x");
    char *from = mem_format("%s/outside/dir2", root), *to = mem_format("%s/models/link", root);
    assert_int_equal(symlink(from, to), 0);
    free(from);
    free(to);
    return 0;
}

static int remove_folders(void **state)
{
    (void)state;
    char *command = mem_format("rm -rf %s", root);
    int code = system(command);
    free(command);
    return code;
}

/* `models`, `path` and `wanted` are below the root where they begin with "/"; NULL: none. */
static void check(const char *models, const char *path, const char *name, const char *wanted,
                  status_t status)
{
    char *list = models ? mem_format("%s%s", root, models) : NULL;
    char *at = path[0] == '/' ? mem_format("%s%s", root, path) : mem_strdup(path);
    char *expected = wanted ? mem_format("%s%s", root, wanted) : NULL, *found = NULL;
    shell_t shell = {.options = {.models = list}};
    assert_int_equal(models_find_file(&shell, at, name, &found), status);
    if (expected)
        assert_string_equal(found, expected);
    else
        assert_null(found);
    free(list);
    free(at);
    free(expected);
    free(found);
}

static void test_a_model_is_found_by_its_path_or_name_inside_the_folder(void **state)
{
    (void)state;
    check("/models", "/models/dir", "dir", "/models/dir", STATUS_OK);
    check("/models", "dir", "dir", "/models/dir", STATUS_OK);
    check("/models", "dir/", "dir", "/models/dir/", STATUS_OK);
    check("/models", "/elsewhere/dir/", "dir", "/models/dir", STATUS_OK);
    check("/models", "/elsewhere/file.gguf", "file", "/models/file.gguf", STATUS_OK);
    check("/models", "file", "file", "/models/file.gguf", STATUS_OK);
    check("/models", "x", "dir", "/models/dir", STATUS_OK);
    check("/models/dir", "/elsewhere/dir", "dir", "/models/dir", STATUS_OK);
    check("/models/dir", "other", "other", NULL, STATUS_NOT_FOUND);
}

static void test_a_split_model_is_found_by_its_bare_name(void **state)
{
    (void)state;
    static const char first[] = "/models/big-00001-of-00002.gguf";
    check("/models", "big", "big", first, STATUS_OK);
    check("/models", "/elsewhere/big", "big", first, STATUS_OK);
    check("/models", "x", "big", first, STATUS_OK);
    check("/models/big-00001-of-00002.gguf", "/elsewhere/big", "big", first, STATUS_OK);
    check("/models", "bi", "bi", NULL, STATUS_NOT_FOUND);
    check("/models", "big-00001", "big-00001", NULL, STATUS_NOT_FOUND);
    check("/models", "tail", "tail", NULL, STATUS_NOT_FOUND);
}

static void test_what_is_outside_or_no_model_is_not_found(void **state)
{
    (void)state;
    check("/models", "/outside/dir2", "dir2", NULL, STATUS_NOT_FOUND);
    assert_non_null(strstr(status_text(), "a directory with a config.json would be right"));
    check("/models", "../outside/dir2", "dir2", NULL, STATUS_NOT_FOUND);
    check("/models", "link", "link", NULL, STATUS_NOT_FOUND);
    check("/models", "/models/empty", "empty", NULL, STATUS_NOT_FOUND);
    check("/models", "..", "..", NULL, STATUS_NOT_FOUND);
    check("/models", ".", ".", NULL, STATUS_NOT_FOUND);
    check("/models", "/", "/", NULL, STATUS_NOT_FOUND);
}

static void test_without_a_folder_the_path_is_the_operators_word(void **state)
{
    (void)state;
    check(NULL, "/outside/dir2", "dir2", "/outside/dir2", STATUS_OK);
    check(NULL, "/models/file.gguf", "file", "/models/file.gguf", STATUS_OK);
    check(NULL, "/models/empty", "empty", NULL, STATUS_INVALID);
    check(NULL, "/nothing", "nothing", NULL, STATUS_NOT_FOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_model_is_found_by_its_path_or_name_inside_the_folder),
        cmocka_unit_test(test_a_split_model_is_found_by_its_bare_name),
        cmocka_unit_test(test_what_is_outside_or_no_model_is_not_found),
        cmocka_unit_test(test_without_a_folder_the_path_is_the_operators_word),
    };
    return cmocka_run_group_tests(tests, make_folders, remove_folders);
}
