/* See grpc_late.h. */
#include "common/net/grpc_late.h"

grpc_late_t grpc_late;

status_t grpc_late_open(void)
{
    static const char *const files[] = {GRPC_LATE_FILES NULL};
    static const char *const names[] = {GRPC_LATE(LATE_NAME)};
    static late_library_t library = {
        .files = files, .names = names, .n = sizeof names / sizeof *names, .calls = &grpc_late};
    _Static_assert(sizeof names == sizeof grpc_late, "as many names as pointers");
    return late_open(&library);
}
