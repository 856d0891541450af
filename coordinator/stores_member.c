/* This coordinator among the others: its registration under a lease, whose mod-revision is its
 * number as a process, and its candidacy.
 *
 * A lost lease ends both; a new one begins them again, with a new number. Nothing is registered
 * while etcd is not trusted: an emptied etcd counts its revisions from the start, and a process
 * number must never come twice within an incarnation. */
#include <stdlib.h>
#include <string.h>

#include "coordinator/stores_state.h"
#include "shoal/cluster/v1/state.pb-c.h"

#define RETRY_MS 500

static void begin_lease(shell_t *shell);
static void try_register(shell_t *shell);

typedef struct {
    shell_t *shell;
    uint64_t life;
    int64_t number;
    char *key;
    uint64_t incarnation;
    bool ok;
} note_t;

static note_t *note_new(shell_t *shell, uint64_t life)
{
    note_t *note = MEM_NEW(note_t);
    note->shell = shell;
    note->life = life;
    return note;
}

/* ---- election ---- */

typedef struct {
    shell_t *shell;
    uint64_t life;
    etcd_election_t *election;
} candidacy_t;

static void on_elected_task(shell_t *shell, void *take_data)
{
    note_t *note = take_data;
    if (note->life == shell->stores->life && shell->stores->election) {
        etcd_compare_t guard = etcd_election_compare(shell->stores->election, note->number);
        size_t skip = sizeof "/shoal//" - 1 + strlen(shell->options.cluster);
        free(shell->stores->election_key);
        shell->stores->election_key = mem_strdup(guard.key + skip);
        log_info("elected, create-revision %lld", (long long)note->number);
        shell_event(shell, &(core_event_t){.kind = CORE_EVENT_ELECTED,
                                           .elected = {shell->stores->election_key,
                                                       (uint64_t)note->number}});
    }
    free(note);
}

static void on_elected(void *context, int64_t create_revision)
{
    candidacy_t *candidacy = context;
    note_t *note = note_new(candidacy->shell, candidacy->life);
    note->number = create_revision;
    shell_post(candidacy->shell, on_elected_task, note);
}

static void on_deposed_task(shell_t *shell, void *take_data)
{
    note_t *note = take_data;
    if (note->life == shell->stores->life)
        shell_event(shell, &(core_event_t){.kind = CORE_EVENT_DEPOSED});
    free(note);
}

static void on_deposed(void *context)
{
    candidacy_t *candidacy = context;
    shell_post(candidacy->shell, on_deposed_task, note_new(candidacy->shell, candidacy->life));
}

static void on_election_closed(void *context)
{
    free(context);
}

static void campaign(shell_t *shell)
{
    stores_t *stores = shell->stores;
    candidacy_t *candidacy = MEM_NEW(candidacy_t);
    candidacy->shell = shell;
    candidacy->life = stores->life;
    etcd_election_handlers_t handlers = {.on_elected = on_elected,
                                         .on_deposed = on_deposed,
                                         .on_closed = on_election_closed,
                                         .context = candidacy};
    char *prefix = stores_key(shell, "election/coordinator/");
    stores->election = etcd_election_open(shell->etcd, prefix, stores->lease_id, shell->id,
                                          strlen(shell->id), &handlers);
    free(prefix);
}

/* ---- registration ---- */

static void retry_register(shell_t *shell, void *take_data)
{
    note_t *note = take_data;
    if (note->life == shell->stores->life && atomic_load(&shell->running))
        try_register(shell);
    free(note);
}

static void on_put_task(shell_t *shell, void *take_data)
{
    note_t *note = take_data;
    stores_t *stores = shell->stores;
    if (note->life == stores->life && !note->ok) {
        shell_post_at(shell, clock_ms() + RETRY_MS, retry_register, note);
        return;
    }
    if (note->life == stores->life) {
        stores->registered_incarnation = note->incarnation;
        log_info("registered as process %llu.%lld", (unsigned long long)note->incarnation,
                 (long long)note->number);
        shell_event(shell, &(core_event_t){.kind = CORE_EVENT_REGISTERED,
                                           .registered = {note->incarnation,
                                                          (uint64_t)note->number}});
        if (!stores->election && !shell->draining)
            campaign(shell);
    }
    free(note);
}

static void on_put(void *context, const etcd_result_t *result)
{
    note_t *note = context;
    note->ok = result->status == STATUS_OK;
    note->number = result->revision;
    if (!note->ok)
        log_warn("registration: %s", result->message);
    shell_post(note->shell, on_put_task, note);
}

static void try_register(shell_t *shell)
{
    stores_t *stores = shell->stores;
    note_t *note = note_new(shell, stores->life);
    char uuid[33];
    /* The comparison of the stores calls again when it has ended well. */
    stores->register_waits =
        !stores->etcd_trusted || !stores_cluster(shell, uuid, &note->incarnation);
    if (stores->register_waits) {
        free(note);
        return;
    }
    Shoal__Cluster__V1__CoordinatorRecord record = SHOAL__CLUSTER__V1__COORDINATOR_RECORD__INIT;
    record.id = shell->id;
    record.endpoint = shell->endpoint;
    static char build[] = SHOAL_VERSION;
    record.build = build;
    buffer_t bytes = {0};
    rpc_pack(&record, &bytes);
    char *name = mem_format("coordinators/%s", shell->id);
    char *key = stores_key(shell, name);
    etcd_put(shell->etcd, key, bytes.data, bytes.size, stores->lease_id, on_put, note);
    free(name);
    free(key);
    buffer_release(&bytes);
}

void stores_member_tick(shell_t *shell)
{
    stores_t *stores = shell->stores;
    char uuid[33];
    uint64_t incarnation;
    if (stores->register_waits && stores->etcd_trusted) {
        try_register(shell);
        return;
    }
    /* An adopted store: the same process goes on under a number of the new incarnation. */
    if (stores->registered_incarnation && stores_cluster(shell, uuid, &incarnation) &&
        incarnation != stores->registered_incarnation && stores->etcd_trusted) {
        stores->registered_incarnation = 0;
        try_register(shell);
    }
}

/* ---- lease ---- */

typedef struct {
    shell_t *shell;
    uint64_t life;
} lease_user_t;

static void on_granted_task(shell_t *shell, void *take_data)
{
    note_t *note = take_data;
    if (note->life == shell->stores->life) {
        shell->stores->lease_id = note->number;
        try_register(shell);
    }
    free(note);
}

static void on_granted(void *context, int64_t lease)
{
    lease_user_t *user = context;
    note_t *note = note_new(user->shell, user->life);
    note->number = lease;
    shell_post(user->shell, on_granted_task, note);
}

static void end_life(shell_t *shell, bool leave)
{
    stores_t *stores = shell->stores;
    stores->life++;
    stores->lease_id = 0;
    stores->register_waits = false;
    stores->registered_incarnation = 0;
    if (stores->election)
        etcd_election_close(stores->election, leave);
    stores->election = NULL;
    if (stores->lease)
        etcd_lease_close(stores->lease, leave);
    stores->lease = NULL;
}

static void on_lost_task(shell_t *shell, void *take_data)
{
    note_t *note = take_data;
    if (note->life == shell->stores->life) {
        log_warn("the lease of this coordinator is gone; it registers anew");
        end_life(shell, false);
        shell_event(shell, &(core_event_t){.kind = CORE_EVENT_DEPOSED});
        if (atomic_load(&shell->running))
            begin_lease(shell);
    }
    free(note);
}

static void on_lost(void *context, int64_t lease)
{
    (void)lease;
    lease_user_t *user = context;
    shell_post(user->shell, on_lost_task, note_new(user->shell, user->life));
}

static void on_lease_closed(void *context)
{
    free(context);
}

static void begin_lease(shell_t *shell)
{
    lease_user_t *user = MEM_NEW(lease_user_t);
    *user = (lease_user_t){shell, shell->stores->life};
    etcd_lease_handlers_t handlers = {on_granted, on_lost, on_lease_closed, user};
    shell->stores->lease =
        etcd_lease_open(shell->etcd, (unsigned)shell->options.lease_s, &handlers);
}

void stores_member_begin(shell_t *shell)
{
    shell->stores->life = 1;
    begin_lease(shell);
}

void stores_member_close(shell_t *shell, bool leave)
{
    end_life(shell, leave);
    free(shell->stores->election_key);
    shell->stores->election_key = NULL;
}
