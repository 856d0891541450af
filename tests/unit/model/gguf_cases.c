/* See gguf_cases.h. */
#include "tests/unit/model/gguf_cases.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/memory.h"
#include "common/model/model.h"

static void write_case(const gguf_case_t *wrong, const char *path)
{
    draft_t *draft = draft_llama();
    buffer_t bytes = {0};
    if (wrong->change != NULL)
        wrong->change(draft);
    if (wrong->bytes != NULL)
        wrong->bytes(draft, &bytes);
    else
        draft_write(draft, &bytes);
    FILE *file = fopen(path, "wbe");
    assert_non_null(file);
    if (bytes.size > 0)
        assert_int_equal(fwrite(bytes.data, 1, bytes.size, file), bytes.size);
    assert_int_equal(fclose(file), 0);
    buffer_release(&bytes);
    draft_free(draft);
}

static bool is_refused(const gguf_case_t *wrong, const char *path)
{
    status_t expected = wrong->status ? wrong->status : STATUS_INVALID;
    model_t *model = NULL;
    status_t status = model_open(path, &model);
    if (status == STATUS_OK)
        model_close(model);
    bool refused = status == expected && strstr(status_text(), wrong->text) != NULL &&
                   strstr(status_text(), path) != NULL;
    if (!refused)
        print_error("case %s: %s \"%s\"; expected %s with \"%s\"\n", wrong->name,
                    status_name(status), status == STATUS_OK ? "" : status_text(),
                    status_name(expected), wrong->text);
    return refused;
}

void gguf_cases_run(const gguf_case_t *cases, size_t n)
{
    char dir[] = "/tmp/shoal-gguf-XXXXXX";
    assert_non_null(mkdtemp(dir));
    size_t n_wrong = 0;
    for (size_t i = 0; i < n; i++) {
        char *path = mem_format("%s/%zu.gguf", dir, i);
        write_case(&cases[i], path);
        n_wrong += !is_refused(&cases[i], path);
        unlink(path);
        free(path);
    }
    rmdir(dir);
    assert_int_equal(n_wrong, 0);
}
