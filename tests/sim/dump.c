/* For `--trace`: where everything stands when a run ends, read from inside the cores. */
#include "coordinator/core/state.h"
#include "tests/sim/sim.h"

static void dump_core(sim_t *sim, const core_t *core)
{
    size_t i = 0;
    for (const session_t *s; (s = table_next(&core->sessions, &i));)
        for (uint32_t c = 0; c < s->n_choices; c++) {
            const sequence_t *q = &s->choices[c];
            sim_trace(sim, "%s %.8s/%u: state %d class %d n %zu need %llu suspect %d deaths %u "
                      "taking %d slot %d item %d", core->config.id, s->id, c, q->state, q->class,
                      q->log.n, (unsigned long long)q->need, q->suspect, q->deaths, s->taking,
                      q->slot ? (int)q->slot->ordinal : -1, s->item != NULL);
        }
    for (size_t k = 0; k < core->n_deployments; k++)
        for (size_t n = 0; n < core->deployments[k]->n_slots; n++) {
            const slot_t *t = core->deployments[k]->slots[n];
            if (t)
                sim_trace(sim,
                          "%s slot %u: epoch %llu active %d failed %d running %u committed %llu "
                          "solo %d link %d credit %llu",
                          core->config.id, t->ordinal, (unsigned long long)t->epoch,
                          t->active != NULL, t->failed, t->n_running,
                          (unsigned long long)t->committed, t->solo != NULL,
                          t->link ? (int)t->link->state : -1,
                          (unsigned long long)(t->link ? t->link->credit : 0));
        }
    i = 0;
    for (const item_t *t; (t = table_next(&core->items, &i));)
        sim_trace(sim, "%s item %.8s %llu attempt %llu state %d op %llu", core->config.id,
                  t->job->id, (unsigned long long)t->index, (unsigned long long)t->attempt,
                  t->state, (unsigned long long)t->op);
    sim_trace(sim, "%s: etcd %d redis %d process %llu former %zu waiting %zu mine_op %llu",
              core->config.id, core->etcd, core->redis, (unsigned long long)core->process.revision,
              core->n_former, core->n_waiting, (unsigned long long)core->mine_op);
}

static void dump_redis(sim_t *sim)
{
    for (uint32_t j = 0; j < SIM_JOBS; j++)
        for (uint32_t i = 0; i < sim->redis.data.jobs[j].n_items; i++) {
            const sim_item_t *t = &sim->redis.data.jobs[j].items[i];
            if (t->state != ITEM_STATE_ENDED)
                sim_trace(sim, "job %u item %u: state %d process %llu attempt %llu", j, i, t->state,
                          (unsigned long long)t->process, (unsigned long long)t->attempt);
        }
    for (size_t i = 0; i < sim->redis.data.n_processes; i++)
        sim_trace(sim, "process %llu: dead %d nonce %llu",
                  (unsigned long long)sim->redis.data.processes[i].number,
                  sim->redis.data.processes[i].dead,
                  (unsigned long long)sim->redis.data.processes[i].nonce);
}

void sim_dump(sim_t *sim)
{
    if (sim->tracing)
        dump_redis(sim);
    for (uint32_t i = 0; sim->tracing && i < SIM_COORDINATORS; i++)
        if (sim->coordinators[i].core)
            dump_core(sim, sim->coordinators[i].core);
    for (uint32_t o = 0; sim->tracing && o < SIM_SLOTS; o++) {
        sim_leader_t *l = leader_of(sim, o);
        if (l)
            leader_dump(sim, l);
    }
}
