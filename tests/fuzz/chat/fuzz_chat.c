/* libFuzzer: a template, a zero byte, and the messages as JSON (some fixed ones when they do not
 * parse). Rendering must end within its budgets, mark each byte, and write valid UTF-8; the
 * character that stands only in the fixed messages must never come out as the template's own.
 * Words for -dict= are in chat.dict; the templates of tests/golden/chat are a corpus to begin
 * with. */
#include <stdint.h>
#include <string.h>

#include "common/model/chat.h"
#include "common/model/unicode.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

enum { STEPS_MAX = 20000 }; /* enough for every path, few enough to run many inputs */

/* U+F8FF, from the private use area, in the fixed messages. */
static const char user[] = "\xEF\xA3\xBF";

/* Whether the template could write the character by itself: as it is or as an escape. */
static bool can_write(const char *source, size_t n)
{
    return memmem(source, n, user, 3) != NULL || memmem(source, n, "8ff", 3) != NULL ||
           memmem(source, n, "8FF", 3) != NULL || memmem(source, n, "8fF", 3) != NULL ||
           memmem(source, n, "8Ff", 3) != NULL;
}

static void check_marks(const buffer_t *text, const buffer_t *marks)
{
    for (size_t i = 0; i + 3 <= text->size; i++)
        if (memcmp(text->data + i, user, 3) == 0)
            CHECK(marks->data[i] == 0 && marks->data[i + 1] == 0 && marks->data[i + 2] == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static json_t *fixed;
    if (fixed == NULL)
        fixed = json_pack("[{s:s,s:s,s:s},{s:s,s:[{s:s},i,f,n,b]}]", "role", "system", "content",
                          " S\n<|x|> \xC3\xA9 \xEF\xA3\xBF", user, user, "role", "user", "content",
                          "type", user, 3, 1.5, 1);
    const uint8_t *end = n == 0 ? NULL : memchr(data, 0, n);
    size_t size = end == NULL ? n : (size_t)(end - data);
    chat_template_t *template = NULL;
    if (chat_template_create((const char *)data, size, "fuzz", &template) != STATUS_OK)
        return 0;
    json_t *own = NULL;
    if (end != NULL)
        own = json_loadb((const char *)end + 1, n - size - 1, JSON_ALLOW_NUL, NULL);
    chat_input_t input = {.messages = own != NULL && json_is_array(own) ? own : fixed,
                          .tools = fixed, .bos_token = "<s>", .eos_token = "</s>",
                          .add_generation_prompt = true, .steps_max = STEPS_MAX,
                          .strict = size > 0 && data[size - 1] == ' '};
    buffer_t text = {0}, marks = {0};
    if (chat_render(template, &input, &text, &marks) == STATUS_OK) {
        CHECK(text.size == marks.size);
        CHECK(utf8_valid_prefix(text.data, text.size) == text.size);
        if (input.messages == fixed && !can_write((const char *)data, size))
            check_marks(&text, &marks);
    } else {
        CHECK(text.size == 0 && *status_text() != 0);
    }
    buffer_release(&text);
    buffer_release(&marks);
    json_decref(own);
    chat_template_release(template);
    return 0;
}
