/* Between chat.c and chat_folder.c. */
#ifndef SHOAL_COMMON_MODEL_CHAT_INTERNAL_H
#define SHOAL_COMMON_MODEL_CHAT_INTERNAL_H

#include "common/model/chat.h"

/* Gives a fresh template its folder's tokens (copied; may be NULL) and the template that renders
 * when there are tools (may be NULL). */
void chat_template_complete(chat_template_t *template, const char *bos_token,
                            const char *eos_token, chat_template_t *take_for_tools);

#endif
