/* See mapping.h. */
#include "common/model/mapping.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

status_t mapping_open(const char *path, const char *wanted, void **own_out, uint64_t *bytes_out)
{
    /* O_NONBLOCK keeps the open of a FIFO from waiting for a writer; files do not notice it. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return fail(errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "%s: cannot open: %s", path,
                    strerror(errno));
    struct stat info;
    status_t status = STATUS_OK;
    void *mapping = MAP_FAILED;
    if (fstat(fd, &info) != 0)
        status = fail(STATUS_IO, "%s: cannot stat: %s", path, strerror(errno));
    else if (!S_ISREG(info.st_mode))
        status = fail(STATUS_INVALID, "%s: not a regular file; %s", path, wanted);
    else if (info.st_size == 0)
        status = fail(STATUS_INVALID, "%s: the file is empty; %s", path, wanted);
    else
        mapping = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (status == STATUS_OK && mapping == MAP_FAILED)
        status = fail(STATUS_IO, "%s: cannot map: %s", path, strerror(errno));
    close(fd);
    TRY(status);
    *own_out = mapping;
    *bytes_out = (uint64_t)info.st_size;
    return STATUS_OK;
}

void mapping_close(void *take_mapping, uint64_t bytes)
{
    if (take_mapping != NULL)
        munmap(take_mapping, (size_t)bytes);
}
