/* Shared libraries that are opened when they are first needed. Linked in the ordinary way, gRPC and
 * UCX bring some sixty libraries into every process before its first line runs, and most lives of
 * shoal-worker (a rank alone, the offline commands) never call them.
 *
 * A library's list is a macro of names, from which its user makes a struct of typed pointers, the
 * names for this call, and one #define for each function, so that calls read as ever
 * (common/net/grpc_late.h). Which file it is (its soname) is found when Shoal is built. */
#ifndef SHOAL_COMMON_BASE_LATE_H
#define SHOAL_COMMON_BASE_LATE_H

#include <stddef.h>

#include "common/base/status.h"

/* The members of a struct of pointers, and the names in the same order: for lists of names. */
#define LATE_MEMBER(name) __typeof__(name) *name##_late;
#define LATE_NAME(name) #name,

typedef struct {
    const char *const *files; /* ends with NULL */
    const char *const *names; /* of functions, each in any of the files */
    size_t n;
    void *calls; /* a struct of n pointers to them */
    bool is_open;
} late_library_t;

/* Opens the files and fills in the calls, unless that was done before. What was opened stays until
 * the process ends. STATUS_UNSUPPORTED names the file or the function that is not there; another try
 * is fine. Any thread. */
status_t late_open(late_library_t *library) MUST_USE;

#endif
