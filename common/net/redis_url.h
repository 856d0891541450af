/* Where a Redis is: redis://[:password@]host[:port], host[:port], or unix:/path. */
#ifndef SHOAL_COMMON_NET_REDIS_URL_H
#define SHOAL_COMMON_NET_REDIS_URL_H

#include "common/base/status.h"

typedef struct {
    char *unix_path; /* or NULL, and then: */
    char *host;
    int port;
    char *password; /* NULL when there is none */
    char *shown;    /* for messages: never holds the password */
} redis_url_t;

/* STATUS_INVALID names what is wrong with the text. */
status_t redis_url_parse(const char *text, redis_url_t *own_out) MUST_USE;
void redis_url_release(redis_url_t *url);

#endif
