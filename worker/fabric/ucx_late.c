/* See ucx_late.h. */
#include "worker/fabric/ucx_late.h"

ucx_late_t ucx_late;

status_t ucx_late_open(void)
{
    static const char *const files[] = {UCX_LATE_FILES NULL};
    static const char *const names[] = {UCX_LATE(LATE_NAME)};
    static late_library_t library = {
        .files = files, .names = names, .n = sizeof names / sizeof *names, .calls = &ucx_late};
    _Static_assert(sizeof names == sizeof ucx_late, "as many names as pointers");
    return late_open(&library);
}
