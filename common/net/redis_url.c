/* Parsing of Redis addresses, apart from the client because it is pure. */
#include "common/net/redis_url.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"

#define PORT_DEFAULT 6379

static status_t parse_port(const char *text, const char *digits, int *out)
{
    char *end;
    long port = strtol(digits, &end, 10);
    if (end == digits || *end || port < 1 || port > 65535)
        return fail(STATUS_INVALID, "redis address \"%s\": port \"%s\" is not 1 to 65535", text,
                    digits);
    *out = (int)port;
    return STATUS_OK;
}

/* [host], [host]:port in brackets for IPv6; else host or host:port. */
static status_t parse_host(const char *text, const char *rest, redis_url_t *out)
{
    const char *end, *port = NULL;
    if (*rest == '[') {
        rest++;
        end = strchr(rest, ']');
        if (!end || (end[1] && end[1] != ':'))
            return fail(STATUS_INVALID, "redis address \"%s\": \"]\" or a port is missing", text);
        if (end[1])
            port = end + 2;
    } else {
        end = strrchr(rest, ':');
        if (end)
            port = end + 1;
        else
            end = rest + strlen(rest);
    }
    if (end == rest)
        return fail(STATUS_INVALID,
                    "redis address \"%s\" names no host; right is host:port or unix:/path", text);
    int number = PORT_DEFAULT;
    if (port)
        TRY(parse_port(text, port, &number));
    out->port = number;
    out->host = mem_strndup(rest, (size_t)(end - rest));
    out->shown = mem_format("%s:%d", out->host, number);
    return STATUS_OK;
}

status_t redis_url_parse(const char *text, redis_url_t *own_out)
{
    if (!text || !*text)
        return fail(STATUS_INVALID, "redis address is empty; right is host:port or unix:/path");
    redis_url_t url = {0};
    if (strncmp(text, "unix:", 5) == 0) {
        const char *path = text + 5;
        if (strncmp(path, "//", 2) == 0)
            path += 2;
        /* sockaddr_un holds 107 bytes; a longer path would be cut silently by hiredis. */
        if (!*path || strlen(path) > 107)
            return fail(STATUS_INVALID, "redis address \"%s\": a socket path has 1 to 107 bytes",
                        text);
        url.unix_path = mem_strdup(path);
        url.shown = mem_strdup(text);
        *own_out = url;
        return STATUS_OK;
    }
    const char *rest = text;
    if (strncmp(rest, "redis://", 8) == 0)
        rest += 8;
    else if (strstr(rest, "://"))
        return fail(STATUS_INVALID, "redis address \"%.20s…\": only redis:// and unix: are known",
                    text);
    char *plain = mem_strdup(rest);
    plain[strcspn(plain, "/")] = '\0'; /* a database number means nothing here: only 0 is used */
    char *at = strrchr(plain, '@');
    char *host = plain;
    if (at) {
        *at = '\0';
        host = at + 1;
        const char *colon = strchr(plain, ':');
        url.password = mem_strdup(colon ? colon + 1 : plain);
    }
    /* Messages show the part after the password only. */
    status_t status = parse_host(host, host, &url);
    free(plain);
    if (status != STATUS_OK) {
        redis_url_release(&url);
        return status;
    }
    *own_out = url;
    return STATUS_OK;
}

void redis_url_release(redis_url_t *url)
{
    free(url->unix_path);
    free(url->host);
    free(url->password);
    free(url->shown);
    *url = (redis_url_t){0};
}
