/* The elected coordinator's duties towards Redis: a dead process's claims are given back release_ms
 * after its key is gone, unless it adopted them under a new number; jobs past their deadline end.
 */
#include "coordinator/core/rollout.h"

#include "common/base/log.h"

enum { PROCESSES_MS = 10000, EXPIRE_MS = 1000 };

static bool is_alive(const core_t *core, jobs_process_t p)
{
    if (p.revision == core->process.revision && p.incarnation == core->process.incarnation)
        return true;
    if (p.incarnation != core->process.incarnation)
        return false;
    for (size_t i = 0; i < core->n_coordinators; i++)
        if (core->coordinators[i].process == p.revision)
            return true;
    return false;
}

void rollout_process_gone(core_t *core, jobs_process_t process)
{
    if (!core->elected || process.revision == 0 || is_alive(core, process))
        return;
    for (size_t i = 0; i < core->n_dying; i++)
        if (core->dying[i].process.revision == process.revision &&
            core->dying[i].process.incarnation == process.incarnation)
            return;
    if (core->n_dying < DYING_MAX) /* else the next reading of all processes finds it again */
        core->dying[core->n_dying++] = (dying_t){process, core->now_ms, 0};
}

void releases_elected(core_t *core)
{
    core->n_dying = 0;
    core->processes_op = core->expire_op = 0;
    core->processes_at_ms = core->expire_at_ms = core->now_ms;
}

void releases_step(core_t *core)
{
    if (core->redis != CORE_STORE_UP || !core->listed_coordinators)
        return;
    if (!core->processes_op && core->now_ms >= core->processes_at_ms) {
        core->processes_at_ms = core->now_ms + PROCESSES_MS;
        core_act(core, CORE_ACTION_JOBS_PROCESSES)->op = core->processes_op = core_number(core);
    }
    if (!core->expire_op && core->now_ms >= core->expire_at_ms) {
        core->expire_at_ms = core->now_ms + EXPIRE_MS;
        core_act(core, CORE_ACTION_JOBS_EXPIRE)->op = core->expire_op = core_number(core);
    }
    for (size_t i = 0; i < core->n_dying; i++) {
        dying_t *d = &core->dying[i];
        if (!d->op && is_alive(core, d->process)) {
            /* Redis knew it before its key was seen here. */
            core->dying[i--] = core->dying[--core->n_dying];
            continue;
        }
        if (d->op || core->now_ms - d->since_ms < core->config.release_ms)
            continue;
        core_action_t *action = core_act(core, CORE_ACTION_JOBS_RELEASE_PROCESS);
        action->op = d->op = core_number(core);
        action->release_process.process = d->process;
        action->release_process.fence = core->election_revision;
    }
}

void rollout_processes(core_t *core, const core_event_t *event)
{
    if (!core->processes_op || event->job_processes.op != core->processes_op)
        return;
    core->processes_op = 0;
    if (event->job_processes.code != JOBS_OK)
        return;
    for (size_t i = 0; i < event->job_processes.n_processes; i++)
        rollout_process_gone(core, event->job_processes.processes[i]);
}

static void released(core_t *core, size_t i, const core_event_t *event)
{
    dying_t *d = &core->dying[i];
    d->op = 0;
    switch (event->jobs_done.code) {
    case JOBS_OK:
        if (event->jobs_done.number)
            return; /* more are left: the next step asks again */
        break;
    case JOBS_FENCED:
        core_log(core, LOG_WARN, "another coordinator was elected: no claims are released here");
        break;
    case JOBS_UNREACHABLE:
        return;
    default:
        core_log(core, LOG_ERROR, "claims of process %llu cannot be released: %s",
                 (unsigned long long)d->process.revision, "Redis refuses it");
        break;
    }
    core->dying[i] = core->dying[--core->n_dying];
}

bool rollout_jobs_done(core_t *core, const core_event_t *event)
{
    uint64_t op = event->jobs_done.op;
    if (!op)
        return false;
    if (op == core->expire_op) {
        core->expire_op = 0;
        return true;
    }
    for (size_t i = 0; i < core->n_dying; i++)
        if (core->dying[i].op == op) {
            released(core, i, event);
            return true;
        }
    return false;
}
