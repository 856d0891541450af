/* The promises, as what may never be seen (docs/design.md, section 5):
 * - an acknowledged job is there at the end, each of its items has exactly one record, and a record
 *   that says "ok" has the oracle's text;
 * - what a client has read is at any time a beginning of the oracle's ids and text, whatever it
 *   resumed from, and a request that ends well ends with all of it;
 * - a plan is written by the elected coordinator alone;
 * - a process number belongs to one life of one coordinator (redis.c);
 * - a poisoned item takes a bounded number of ranks with it, and no innocent request;
 * - when nothing fails any more, everything ends. */
#include <string.h>

#include "tests/sim/sim.h"

void check_plan_write(sim_t *sim, uint32_t coordinator, const char *key)
{
    size_t n = strlen(key);
    if (strncmp(key, "replicas/", 9) != 0 || n < 5 || strcmp(key + n - 5, "/plan") != 0)
        return;
    const sim_key_t *lowest = NULL;
    for (size_t i = 0; i < sim->etcd.n_keys; i++) {
        const sim_key_t *k = &sim->etcd.keys[i];
        if (strncmp(k->key, "election/", 9) == 0 && (!lowest || k->create < lowest->create))
            lowest = k;
    }
    uint32_t elected = UINT32_MAX;
    if (lowest)
        memcpy(&elected, lowest->value, sizeof elected);
    if (elected != coordinator)
        sim_violate(sim, "c%u writes %s and is not elected", coordinator, key);
}

static bool job_ended(const sim_t *sim, uint32_t j)
{
    const sim_job_t *job = &sim->redis.data.jobs[j];
    return sim->jobs_void || (job->used && job->n_ended == job->n_items);
}

bool check_finished(const sim_t *sim)
{
    for (uint32_t i = 0; i < SIM_CLIENTS; i++)
        if (!sim->clients[i].done && !sim->clients[i].lost)
            return false;
    for (uint32_t j = 0; j < SIM_JOBS; j++)
        if (!sim->expected[j].acknowledged || !job_ended(sim, j))
            return false;
    return true;
}

static void check_item(sim_t *sim, uint32_t j, uint32_t i)
{
    const sim_expected_job_t *expected = &sim->expected[j];
    const sim_item_t *item = &sim->redis.data.jobs[j].items[i];
    if (item->n_records != 1) {
        sim_violate(sim, "item %u of job %u has %u records", i, j, item->n_records);
        return;
    }
    if (item->end == JOBS_END_CANCELLED && expected->cancelled)
        return;
    bool poison = expected->poison && i == 0;
    if (item->end == JOBS_END_ERROR && poison && strcmp(item->error, "poisoned") == 0)
        return;
    if (item->end != JOBS_END_OK) {
        sim_violate(sim, "item %u of job %u ended as %d with the error \"%s\"", i, j, item->end,
                    item->error);
        return;
    }
    request_t request;
    oracle_text_t want;
    request_draw(sim_mix(expected->seed, i), poison, &request);
    oracle_text(request.seed, 0, request.max_tokens, request.stop, &want);
    if (strcmp(item->text, want.text) != 0 || item->n_ids != want.n)
        sim_violate(sim, "item %u of job %u is \"%s\" and should be \"%s\"", i, j, item->text,
                    want.text);
}

void check_end(sim_t *sim)
{
    for (uint32_t j = 0; j < SIM_JOBS && !sim->jobs_void; j++) {
        const sim_job_t *job = &sim->redis.data.jobs[j];
        if (!sim->expected[j].acknowledged)
            sim_violate(sim, "job %u was never acknowledged", j);
        else if (!job->used)
            sim_violate(sim, "job %u was acknowledged and is gone", j);
        else if (job->n_ended != job->n_items)
            sim_violate(sim, "job %u: %u of %u items have ended", j, job->n_ended, job->n_items);
        for (uint32_t i = 0; i < job->n_items && job->n_ended == job->n_items; i++)
            check_item(sim, j, i);
        /* With everything else alive the third death is the last; a coordinator or store that dies
         * in between may forget one that was not written down yet. A death that could not be
         * told when it happened, because etcd was away or the host died too, is one more: what is
         * not known cannot be held against the item. */
        uint32_t deaths_max = sim->disturbed || (sim->faults & FAULT_LOSS) ? 6 : 3;
        deaths_max += sim->n_deaths_untold;
        if (sim->expected[j].n_deaths > deaths_max)
            sim_violate(sim, "the poison of job %u killed %u ranks", j, sim->expected[j].n_deaths);
    }
    for (uint32_t i = 0; i < SIM_CLIENTS; i++)
        if (!sim->clients[i].done && !sim->clients[i].lost)
            sim_violate(sim, "client %u, request %.8s: no end in time", i, sim->clients[i].id);
}
