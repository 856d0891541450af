/* See late.h. */
#include "common/base/late.h"

#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

enum { FILES_MAX = 4 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of every library */

static status_t open_files(const late_library_t *library, void *opened[FILES_MAX], size_t *n_out)
{
    for (*n_out = 0; library->files[*n_out] != NULL; (*n_out)++) {
        CHECK(*n_out < FILES_MAX);
        /* Its own calls are bound here: one that is missing is an error now and no crash later. */
        void *file = dlopen(library->files[*n_out], RTLD_NOW | RTLD_LOCAL);
        if (file == NULL)
            return fail(STATUS_UNSUPPORTED,
                        "a library that Shoal was built with cannot be opened: %s", dlerror());
        opened[*n_out] = file;
    }
    return STATUS_OK;
}

static status_t find_calls(const late_library_t *library)
{
    void *opened[FILES_MAX];
    size_t n_files;
    TRY(open_files(library, opened, &n_files));
    for (size_t i = 0; i < library->n; i++) {
        void *address = NULL;
        for (size_t f = 0; f < n_files && address == NULL; f++)
            address = dlsym(opened[f], library->names[i]);
        if (address == NULL)
            return fail(STATUS_UNSUPPORTED,
                        "%s has no %s: Shoal was built with another version of it",
                        library->files[0], library->names[i]);
        memcpy((char *)library->calls + i * sizeof address, &address, sizeof address);
    }
    return STATUS_OK;
}

status_t late_open(late_library_t *library)
{
    status_t status = STATUS_OK;
    pthread_mutex_lock(&lock);
    if (!library->is_open)
        status = find_calls(library);
    library->is_open = status == STATUS_OK;
    pthread_mutex_unlock(&lock);
    return status;
}
