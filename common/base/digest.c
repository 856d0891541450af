/* See digest.h. libcrypto does the work; it only fails when memory is gone. */
#include "common/base/digest.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/memory.h"

enum { READ_BYTES = 64 * 1024 };

struct digest {
    EVP_MD_CTX *context;
};

digest_t *digest_start(void)
{
    digest_t *digest = MEM_NEW(digest_t);
    digest->context = EVP_MD_CTX_new();
    CHECK(digest->context != NULL);
    CHECK(EVP_DigestInit_ex(digest->context, EVP_sha256(), NULL) == 1);
    return digest;
}

void digest_add(digest_t *digest, const void *bytes, size_t n)
{
    CHECK(EVP_DigestUpdate(digest->context, bytes, n) == 1);
}

void digest_add_field(digest_t *digest, const void *bytes, size_t n)
{
    uint8_t length[8];
    for (size_t i = 0; i < sizeof length; i++)
        length[i] = (uint8_t)((uint64_t)n >> (8 * i));
    digest_add(digest, length, sizeof length);
    digest_add(digest, bytes, n);
}

void digest_finish(digest_t *take_digest, char hex_out[DIGEST_HEX_SIZE])
{
    static const char digits[] = "0123456789abcdef";
    uint8_t bytes[EVP_MAX_MD_SIZE];
    unsigned n;
    CHECK(EVP_DigestFinal_ex(take_digest->context, bytes, &n) == 1 && n == DIGEST_BYTES);
    for (unsigned i = 0; i < n; i++) {
        hex_out[2 * i] = digits[bytes[i] >> 4];
        hex_out[2 * i + 1] = digits[bytes[i] & 15];
    }
    hex_out[2 * n] = 0;
    digest_drop(take_digest);
}

void digest_drop(digest_t *take_digest)
{
    EVP_MD_CTX_free(take_digest->context);
    free(take_digest);
}

void digest_of_bytes(const void *bytes, size_t n, char hex_out[DIGEST_HEX_SIZE])
{
    digest_t *digest = digest_start();
    digest_add(digest, bytes, n);
    digest_finish(digest, hex_out);
}

static status_t add_file(digest_t *digest, int fd, const char *path)
{
    uint8_t *buffer = MEM_NEW_ARRAY(uint8_t, READ_BYTES);
    status_t status = STATUS_OK;
    for (;;) {
        ssize_t n = read(fd, buffer, READ_BYTES);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            status = fail(STATUS_IO, "%s: cannot read: %s", path, strerror(errno));
        if (n <= 0)
            break;
        digest_add(digest, buffer, (size_t)n);
    }
    free(buffer);
    return status;
}

status_t digest_of_file(const char *path, char hex_out[DIGEST_HEX_SIZE])
{
    /* O_NONBLOCK keeps the open of a FIFO from waiting for a writer; files do not notice it. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return fail(errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "%s: cannot open: %s", path,
                    strerror(errno));
    struct stat info;
    status_t status = STATUS_OK;
    if (fstat(fd, &info) != 0)
        status = fail(STATUS_IO, "%s: cannot stat: %s", path, strerror(errno));
    else if (!S_ISREG(info.st_mode))
        status = fail(STATUS_INVALID, "%s: not a regular file", path);
    digest_t *digest = digest_start();
    if (status == STATUS_OK)
        status = add_file(digest, fd, path);
    close(fd);
    if (status != STATUS_OK) {
        digest_drop(digest);
        return status;
    }
    digest_finish(digest, hex_out);
    return STATUS_OK;
}
