/* The client as a whole: endpoints, what is known of the store, opening and closing. */
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/net/etcd_internal.h"

static void close_channels(etcd_t *etcd)
{
    for (size_t i = 0; i < etcd->n_channels; i++)
        rpc_channel_close(etcd->channels[i]);
}

static status_t open_channels(etcd_t *etcd, const char *endpoints)
{
    const char *at = endpoints ? endpoints : "";
    do {
        size_t n = strcspn(at, ",");
        char *endpoint = mem_strndup(at, n);
        rpc_channel_options_t options = {
            .endpoint = endpoint,
            .message_bytes_max = ETCD_MESSAGE_BYTES_MAX,
            /* etcd hangs up on who pings more often than each 5 s. */
            .keepalive_ms = 6000,
            .keepalive_timeout_ms = 3000,
            .backoff_ms_max = 1000,
        };
        status_t status = STATUS_OK;
        if (etcd->n_channels == ETCD_ENDPOINTS_MAX)
            status = fail(STATUS_INVALID, "more than %d etcd endpoints", ETCD_ENDPOINTS_MAX);
        else
            status = rpc_channel_open(etcd->io, &options, &etcd->channels[etcd->n_channels]);
        free(endpoint);
        if (status != STATUS_OK)
            return fail_in(status, "etcd");
        etcd->n_channels++;
        at += n;
    } while (*at++ == ',');
    return STATUS_OK;
}

status_t etcd_open(rpc_io_t *io, const etcd_options_t *options, etcd_t **own_etcd_out)
{
    etcd_t *etcd = MEM_NEW(etcd_t);
    etcd->io = io;
    etcd->options = *options;
    etcd->options.endpoints = NULL;
    if (!etcd->options.timeout_ms)
        etcd->options.timeout_ms = 5000;
    if (!etcd->options.page_keys)
        etcd->options.page_keys = 256;
    if (!etcd->options.reconcile_ms)
        etcd->options.reconcile_ms = 30000;
    if (!etcd->options.backoff_ms_max)
        etcd->options.backoff_ms_max = 2000;
    status_t status = open_channels(etcd, options->endpoints);
    if (status == STATUS_OK)
        status = etcd_loop_start(etcd);
    if (status != STATUS_OK) {
        close_channels(etcd);
        free(etcd);
        return status;
    }
    *own_etcd_out = etcd;
    return STATUS_OK;
}

void etcd_close(etcd_t *take_etcd)
{
    etcd_loop_join(take_etcd);
    close_channels(take_etcd);
    free(take_etcd);
}

status_t etcd_wait_ready(etcd_t *etcd, unsigned timeout_ms)
{
    Etcdserverpb__RangeRequest request = ETCDSERVERPB__RANGE_REQUEST__INIT;
    request.key = (ProtobufCBinaryData){1, (uint8_t[]){'/'}};
    etcd_waiter_t *waiter = etcd_waiter_new();
    /* A read is retried until its time is up. */
    etcd_call_within(etcd, ETCD_CALL_RANGE, &request, timeout_ms, STATUS_OK, etcd_wait_done,
                     waiter);
    status_t status = etcd_wait(waiter, NULL);
    if (status == STATUS_OK || status == STATUS_CANCELLED)
        return status;
    return fail_in(STATUS_UNREACHABLE, "no answer within %u ms", timeout_ms);
}

int64_t etcd_revision_seen(etcd_t *etcd)
{
    return atomic_load(&etcd->revision_seen);
}

uint64_t etcd_cluster_id(etcd_t *etcd)
{
    return atomic_load(&etcd->cluster_id);
}

unsigned etcd_regressions(etcd_t *etcd)
{
    return atomic_load(&etcd->regressions);
}

bool etcd_reachable(etcd_t *etcd)
{
    return atomic_load(&etcd->reachable);
}

etcd_mark_t etcd_mark(etcd_t *etcd)
{
    return (etcd_mark_t){etcd->revision_now, atomic_load(&etcd->regressions)};
}

bool etcd_note_header(etcd_t *etcd, const Etcdserverpb__ResponseHeader *header, etcd_mark_t mark)
{
    if (!header)
        return false;
    atomic_store(&etcd->reachable, true);
    uint64_t known = atomic_load(&etcd->cluster_id);
    bool other = known && known != header->cluster_id;
    /* Answers overtake each other, so only one that is older than what was known when its question
     * was sent proves anything; and one store that went back is counted once. */
    bool back = header->revision && header->revision < mark.revision;
    bool regressed = false;
    if ((back || other) && mark.regressions == atomic_load(&etcd->regressions)) {
        log_warn("etcd went back from revision %lld to %lld: emptied or restored",
                 (long long)mark.revision, (long long)header->revision);
        atomic_fetch_add(&etcd->regressions, 1);
        etcd->revision_now = header->revision;
        regressed = true;
    }
    if (regressed || !known)
        atomic_store(&etcd->cluster_id, header->cluster_id);
    if (header->revision > etcd->revision_now)
        etcd->revision_now = header->revision;
    if (header->revision > atomic_load(&etcd->revision_seen))
        atomic_store(&etcd->revision_seen, header->revision);
    return regressed;
}

void etcd_note_failure(etcd_t *etcd, size_t endpoint)
{
    atomic_store(&etcd->reachable, false);
    if (etcd->current == endpoint)
        etcd->current = (endpoint + 1) % etcd->n_channels;
}

size_t etcd_pick(etcd_t *etcd)
{
    for (size_t i = 0; i < etcd->n_channels; i++) {
        size_t endpoint = (etcd->current + i) % etcd->n_channels;
        if (rpc_channel_state(etcd->channels[endpoint]) != RPC_FAILING)
            return endpoint;
    }
    return etcd->current;
}

char *etcd_prefix_end(const char *prefix, size_t *size_out)
{
    size_t n = strlen(prefix);
    char *end = mem_strndup(prefix, n);
    while (n && (unsigned char)end[n - 1] == 0xff)
        n--;
    if (n == 0) { /* etcd's sign for "to the last key" */
        free(end);
        *size_out = 1;
        return mem_new(2, 1);
    }
    end[n - 1] = (char)(unsigned char)((unsigned char)end[n - 1] + 1);
    end[n] = 0;
    *size_out = n;
    return end;
}
