/* A lease: granted, kept alive, and its loss told. The stream of keepalives answers in order, so
 * the send times stand in a row and each answer takes the oldest: what counts for fencing is when a
 * keepalive was sent, because etcd may have counted from then. */
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/failpoint.h"
#include "common/net/etcd_internal.h"

#define UNANSWERED_MAX 8

struct etcd_lease {
    etcd_t *etcd;
    etcd_lease_t *next, *previous;
    unsigned refs; /* the handle's, the timer's, the grant's */
    etcd_lease_handlers_t handlers;
    unsigned ttl_s;
    _Atomic int64_t id;
    _Atomic uint64_t safe_until_ms;
    atomic_bool closed; /* no callback but on_closed starts any more */
    bool open;          /* in the client's list */
    bool revoke;
    bool lost;
    uint64_t granted_at_ms; /* when the grant was asked for */
    unsigned attempt;
    etcd_stream_t *stream;
    bool timer_armed;
    uint64_t sent_ms[UNANSWERED_MAX]; /* of keepalives without an answer, the oldest first */
    size_t n_sent;
    uint64_t next_send_ms;
};

static void ask_for_grant(etcd_lease_t *lease);
static void tick(void *context);
static void close_lease(void *context);

static void unref(etcd_lease_t *lease)
{
    if (--lease->refs == 0)
        free(lease);
}

static bool silent(etcd_lease_t *lease)
{
    return !lease->open || atomic_load(&lease->closed);
}

static void arm(etcd_lease_t *lease, uint64_t delay_ms)
{
    if (lease->timer_armed)
        return;
    lease->timer_armed = true;
    lease->refs++;
    etcd_after(lease->etcd, delay_ms, tick, lease);
}

static uint64_t period_ms(const etcd_lease_t *lease)
{
    uint64_t third = (uint64_t)lease->ttl_s * 1000 / 3;
    return third ? third : 1;
}

static void lose(etcd_lease_t *lease)
{
    lease->lost = true;
    atomic_store(&lease->safe_until_ms, 0);
    etcd_stream_drop(lease->stream);
    lease->stream = NULL;
    if (!silent(lease) && lease->handlers.on_lost)
        lease->handlers.on_lost(lease->handlers.context, atomic_load(&lease->id));
}

/* ---- keeping it alive ---- */

static void stream_message(void *owner, const uint8_t *bytes, size_t n)
{
    etcd_lease_t *lease = owner;
    ProtobufCMessage *message;
    status_t status = rpc_unpack(&etcdserverpb__lease_keep_alive_response__descriptor, bytes, n,
                                 NULL, &message);
    if (status != STATUS_OK) {
        etcd_stream_drop(lease->stream);
        lease->stream = NULL;
        return; /* the tick opens another one */
    }
    const Etcdserverpb__LeaseKeepAliveResponse *answer = (const void *)message;
    /* No mark: leases may be answered by a member that lags, so its revision proves nothing. */
    etcd_note_header(lease->etcd, answer->header, (etcd_mark_t){0, UINT32_MAX});
    int64_t ttl = answer->ttl;
    uint64_t sent = lease->n_sent ? lease->sent_ms[0] : 0;
    if (lease->n_sent)
        memmove(lease->sent_ms, lease->sent_ms + 1, --lease->n_sent * sizeof lease->sent_ms[0]);
    rpc_message_free(message);
    lease->attempt = 0;
    if (ttl <= 0) {
        lose(lease);
        return;
    }
    if (sent)
        atomic_store(&lease->safe_until_ms, sent + (uint64_t)ttl * 1000);
    etcd_stream_more(lease->stream);
}

static void stream_end(void *owner, status_t status, const char *message)
{
    (void)message;
    etcd_lease_t *lease = owner;
    lease->stream = NULL;
    if (status == STATUS_NOT_FOUND) {
        lose(lease);
        return;
    }
    lease->next_send_ms = clock_ms() + etcd_backoff(lease->etcd, lease->attempt++);
}

static void send_keepalive(etcd_lease_t *lease, uint64_t now)
{
    static const etcd_stream_handlers_t handlers = {stream_message, stream_end};
    if (!lease->stream) {
        lease->n_sent = 0;
        lease->stream =
            etcd_stream_open(lease->etcd, "/etcdserverpb.Lease/LeaseKeepAlive", &handlers, lease);
    }
    Etcdserverpb__LeaseKeepAliveRequest request = ETCDSERVERPB__LEASE_KEEP_ALIVE_REQUEST__INIT;
    request.id = atomic_load(&lease->id);
    if (lease->n_sent < UNANSWERED_MAX && etcd_stream_send(lease->stream, &request))
        lease->sent_ms[lease->n_sent++] = now;
    (void)FAILPOINT("etcd.keepalive"); /* sent, and not answered yet */
    lease->next_send_ms = now + period_ms(lease);
}

/* Runs often enough to notice an answer that does not come. */
static void tick(void *context)
{
    etcd_lease_t *lease = context;
    lease->timer_armed = false;
    if (lease->open && !lease->lost && !atomic_load(&lease->etcd->closing)) {
        uint64_t now = clock_ms();
        if (!atomic_load(&lease->id)) {
            ask_for_grant(lease);
        } else {
            if (lease->stream && lease->n_sent && now > lease->sent_ms[0] + period_ms(lease)) {
                /* A stopped server keeps its sockets open: only silence tells. */
                etcd_stream_drop(lease->stream);
                lease->stream = NULL;
                if (lease->etcd->n_channels > 1)
                    etcd_note_failure(lease->etcd, lease->etcd->current);
                lease->next_send_ms = now;
            }
            if (now >= lease->next_send_ms)
                send_keepalive(lease, now);
            uint64_t most = period_ms(lease) / 4 + 1;
            uint64_t left = lease->next_send_ms > now ? lease->next_send_ms - now : 1;
            arm(lease, left < most ? left : most);
        }
    }
    unref(lease);
}

/* ---- the grant ---- */

static void granted(void *context, const etcd_result_t *result)
{
    etcd_lease_t *lease = context;
    if (result->status == STATUS_OK && !lease->open) {
        /* Closed meanwhile: without a holder the lease expires by itself. */
    } else if (result->status == STATUS_OK) {
        lease->attempt = 0;
        lease->ttl_s = result->ttl_s > 0 ? (unsigned)result->ttl_s : lease->ttl_s;
        atomic_store(&lease->id, result->lease);
        atomic_store(&lease->safe_until_ms,
                     lease->granted_at_ms + (uint64_t)lease->ttl_s * 1000);
        lease->next_send_ms = clock_ms() + period_ms(lease);
        arm(lease, period_ms(lease) / 4 + 1);
        if (!silent(lease) && lease->handlers.on_granted)
            lease->handlers.on_granted(lease->handlers.context, result->lease);
    } else if (lease->open) {
        arm(lease, etcd_backoff(lease->etcd, lease->attempt++));
    }
    unref(lease);
}

static void ask_for_grant(etcd_lease_t *lease)
{
    Etcdserverpb__LeaseGrantRequest request = ETCDSERVERPB__LEASE_GRANT_REQUEST__INIT;
    request.ttl = lease->ttl_s;
    lease->granted_at_ms = clock_ms();
    lease->refs++;
    etcd_call(lease->etcd, ETCD_CALL_GRANT, &request, STATUS_OK, granted, lease);
}

/* ---- opening and closing ---- */

static void begin(void *context)
{
    etcd_lease_t *lease = context;
    etcd_t *etcd = lease->etcd;
    lease->open = true;
    etcd->n_busy++;
    lease->next = etcd->leases;
    if (lease->next)
        lease->next->previous = lease;
    etcd->leases = lease;
    if (!atomic_load(&etcd->closing))
        ask_for_grant(lease);
    else if (!atomic_exchange(&lease->closed, true))
        close_lease(lease);
}

static void ignore(void *context, const etcd_result_t *result)
{
    (void)context;
    (void)result;
}

static void close_lease(void *context)
{
    etcd_lease_t *lease = context;
    etcd_t *etcd = lease->etcd;
    lease->open = false;
    etcd->n_busy--;
    if (lease->previous)
        lease->previous->next = lease->next;
    else
        etcd->leases = lease->next;
    if (lease->next)
        lease->next->previous = lease->previous;
    etcd_stream_drop(lease->stream);
    lease->stream = NULL;
    atomic_store(&lease->safe_until_ms, 0);
    if (lease->revoke && atomic_load(&lease->id) && !lease->lost) {
        Etcdserverpb__LeaseRevokeRequest request = ETCDSERVERPB__LEASE_REVOKE_REQUEST__INIT;
        request.id = atomic_load(&lease->id);
        etcd_call(etcd, ETCD_CALL_REVOKE, &request, STATUS_OK, ignore, NULL);
    }
    if (lease->handlers.on_closed)
        lease->handlers.on_closed(lease->handlers.context);
    unref(lease);
}

void etcd_leases_close(etcd_t *etcd)
{
    /* Those that the user has closed have a task of their own in the queue. */
    for (etcd_lease_t *lease = etcd->leases, *next; lease; lease = next) {
        next = lease->next;
        if (!atomic_exchange(&lease->closed, true))
            close_lease(lease);
    }
}

etcd_lease_t *etcd_lease_open(etcd_t *etcd, unsigned ttl_s, const etcd_lease_handlers_t *handlers)
{
    etcd_lease_t *lease = MEM_NEW(etcd_lease_t);
    lease->etcd = etcd;
    lease->refs = 1;
    lease->ttl_s = ttl_s ? ttl_s : 1;
    lease->handlers = *handlers;
    etcd_post(etcd, begin, lease);
    return lease;
}

int64_t etcd_lease_id(etcd_lease_t *lease)
{
    return atomic_load(&lease->id);
}

uint64_t etcd_lease_safe_until_ms(etcd_lease_t *lease)
{
    return atomic_load(&lease->safe_until_ms);
}

void etcd_lease_close(etcd_lease_t *take_lease, bool revoke)
{
    atomic_store(&take_lease->closed, true);
    take_lease->revoke = revoke;
    etcd_post(take_lease->etcd, close_lease, take_lease);
}
