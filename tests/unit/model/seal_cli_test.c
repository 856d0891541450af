/* `shoal seal` and `shoal verify` as people call them: what is printed and the exit codes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "common/base/buffer.h"
#include "common/base/memory.h"
#include "tests/unit/model/safetensors_draft.h"

/* Runs `shoal COMMAND FOLDER MORE` and returns its exit code; both of its outputs go to `out`. */
static int shoal(const char *command, const char *folder, const char *more, buffer_t *out)
{
    char *line = mem_format("'%s/shoal' %s '%s' %s 2>&1", SHOAL_BIN_DIR, command, folder, more);
    FILE *pipe = popen(line, "re");
    assert_non_null(pipe);
    char piece[512];
    buffer_clear(out);
    for (size_t n; (n = fread(piece, 1, sizeof piece, pipe)) > 0;)
        buffer_append(out, piece, n);
    int code = pclose(pipe);
    free(line);
    assert_true(WIFEXITED(code));
    return WEXITSTATUS(code);
}

static void test_a_changed_file_is_named_and_gives_exit_code_5(void **state)
{
    (void)state;
    char *folder = folder_new();
    buffer_t out = {0};
    folder_write_text(folder, "config.json", "{}");
    folder_write_text(folder, "w.safetensors", "abc");
    assert_int_equal(shoal("verify", folder, "", &out), 3);
    assert_non_null(strstr(buffer_text(&out), "manifest.sha256: cannot open: No such file"));
    assert_int_equal(shoal("seal", folder, "", &out), 0);
    assert_string_equal(buffer_text(&out), "ok       config.json\nok       w.safetensors\n");
    assert_int_equal(shoal("verify", folder, "-o json", &out), 0);
    json_t *files = json_loadb(buffer_text(&out), out.size, 0, NULL);
    assert_int_equal(json_array_size(files), 2);
    assert_true(json_is_true(json_object_get(json_array_get(files, 1), "ok")));
    json_decref(files);
    folder_write_text(folder, "w.safetensors", "abd");
    folder_write_text(folder, "new.json", "");
    assert_int_equal(shoal("verify", folder, "", &out), 5);
    assert_non_null(strstr(buffer_text(&out), "ok       config.json\nWRONG    w.safetensors: its"));
    assert_non_null(strstr(buffer_text(&out), "WRONG    new.json: it is not sealed\n"));
    assert_non_null(strstr(buffer_text(&out), "2 files are not as sealed; the first: w.safe"));
    assert_int_equal(shoal("verify", folder, "--public-key /nowhere", &out), 2);
    assert_int_equal(shoal("seal", folder, "--key /nowhere", &out), 3);
    assert_int_equal(shoal("seal", "/nowhere", "", &out), 3);
    buffer_release(&out);
    folder_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_changed_file_is_named_and_gives_exit_code_5),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
