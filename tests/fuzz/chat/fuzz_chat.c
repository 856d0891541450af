/* libFuzzer: a template, a zero byte, and the messages as JSON (some fixed ones when they do not
 * parse). Rendering must end within its budgets, mark each byte, and write valid UTF-8. */
#include <stdint.h>
#include <string.h>

#include "common/model/chat.h"
#include "common/model/unicode.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

enum { STEPS_MAX = 20000 }; /* enough for every path, few enough to run many inputs */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static json_t *fixed;
    if (fixed == NULL)
        fixed = json_pack("[{s:s,s:s},{s:s,s:[{s:s},i,f,n,b]}]", "role", "system", "content",
                          " S\n<|x|> \xC3\xA9 ", "role", "user", "content", "type", "text", 3, 1.5,
                          1);
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
    } else {
        CHECK(text.size == 0 && *status_text() != 0);
    }
    buffer_release(&text);
    buffer_release(&marks);
    json_decref(own);
    chat_template_release(template);
    return 0;
}
