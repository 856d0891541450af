/* What the links of hosts and devices take of a step. See forecast_links.h. */
#include "common/model/forecast_links.h"

/* What the members of a stage send each other: a part from each to each. The devices of a host
 * carry it at once; a host's own link carries all that its members get from other hosts. */
static double exchange_s(const hosts_file_t *hosts, const uint32_t *devices, uint32_t tp,
                         const double *part_bytes)
{
    double slowest = 0, from_others[PLAN_TP_MAX] = {0};
    if (tp == 1)
        return 0;
    for (uint32_t i = 0; i < tp; i++) {
        const hosts_device_t *device = &hosts->devices[devices[i]];
        double near = 0;
        for (uint32_t k = 0; k < tp; k++) {
            bool same = hosts->host_of[devices[i]] == hosts->host_of[devices[k]];
            near += k != i && same ? part_bytes[k] : 0;
            from_others[i] += same ? 0 : part_bytes[k];
        }
        double s = near > 0 ? near / device->link_bytes_s + device->link_s : 0;
        slowest = s > slowest ? s : slowest;
    }
    for (uint32_t i = 0; i < tp; i++) {
        const hosts_host_t *host = &hosts->hosts[hosts->host_of[devices[i]]];
        double bytes = 0;
        for (uint32_t k = 0; k < tp; k++)
            if (hosts->host_of[devices[i]] == hosts->host_of[devices[k]])
                bytes += from_others[k];
        double s = bytes > 0 ? bytes / host->link_bytes_s + host->link_s : 0;
        slowest = s > slowest ? s : slowest;
    }
    return slowest;
}

/* A sum over the members of a stage: whole or by pieces, whatever these links do sooner. */
static double sum_s(const hosts_file_t *hosts, const uint32_t *devices, uint32_t tp,
                    const double *part_bytes, double elements)
{
    double pieces[PLAN_TP_MAX], sums[PLAN_TP_MAX];
    for (uint32_t i = 0; i < tp; i++) {
        pieces[i] = part_bytes[i] / tp;
        sums[i] = sizeof(float) * elements / tp;
    }
    double whole_s = exchange_s(hosts, devices, tp, part_bytes);
    double pieces_s = exchange_s(hosts, devices, tp, pieces) + exchange_s(hosts, devices, tp, sums);
    return whole_s < pieces_s ? whole_s : pieces_s;
}

/* Each slice passes its copy of the rows to the same slice of the next stage. */
static double pass_s(const hosts_file_t *hosts, const uint32_t *from, const uint32_t *to,
                     uint32_t tp, double bytes)
{
    double slowest = 0;
    for (uint32_t i = 0; i < tp; i++) {
        const hosts_device_t *device = &hosts->devices[from[i]];
        const hosts_host_t *host = &hosts->hosts[hosts->host_of[from[i]]];
        uint32_t together = 0;
        bool near = hosts->host_of[from[i]] == hosts->host_of[to[i]];
        for (uint32_t k = 0; k < tp; k++)
            together += hosts->host_of[from[k]] == hosts->host_of[from[i]] &&
                        hosts->host_of[to[k]] != hosts->host_of[from[k]];
        double s = near ? bytes / device->link_bytes_s + device->link_s
                        : together * bytes / host->link_bytes_s + host->link_s;
        slowest = s > slowest ? s : slowest;
    }
    return slowest;
}

/* Slice 0 of the last stage gets the columns of all others; a head that is shared first gets its rows
 * from there. */
static double gather_s(const hosts_file_t *hosts, const model_config_t *config,
                       const forecast_t *forecast, uint32_t rows)
{
    const plan_shape_t *shape = &forecast->shape;
    uint32_t tp = shape->tp, n = tp * shape->stages, last = n - tp;
    const hosts_device_t *device = &hosts->devices[forecast->devices[last]];
    uint32_t home = hosts->host_of[forecast->devices[last]];
    const hosts_host_t *host = &hosts->hosts[home];
    double near = 0, far = 0;
    for (uint32_t i = 0; i < n; i++) {
        double bytes = 4.0 * rows * plan_head_run(config->vocab, tp, shape->stages,
                                                  shape->shared_head, i / tp, i % tp).count;
        if (shape->shared_head && i < last)
            bytes += 4.0 * rows * model_residual(config);
        if (hosts->host_of[forecast->devices[i]] != home)
            far += bytes;
        else if (i != last)
            near += bytes;
    }
    double near_s = near > 0 ? near / device->link_bytes_s + device->link_s : 0;
    double far_s = far > 0 ? far / host->link_bytes_s + host->link_s : 0;
    return near_s > far_s ? near_s : far_s;
}

double forecast_links_s(const forecast_question_t *question, const hosts_file_t *hosts,
                        const forecast_t *forecast, uint32_t stage, const plan_slice_t *slices,
                        const roofline_step_t *step)
{
    const model_config_t *config = &question->sizes->config;
    uint32_t tp = forecast->shape.tp;
    const uint32_t *devices = forecast->devices + stage * tp;
    double parts[PLAN_TP_MAX], seconds = 0, elements = (double)step->rows * config->hidden;
    for (uint32_t i = 0; i < forecast->layers[stage].count && tp > 1; i++) {
        uint32_t layer = forecast->layers[stage].first + i;
        for (uint32_t s = 0; s < tp; s++)
            parts[s] = roofline_partial_bytes_attention(
                config, &slices[s], roofline_rows_of_replica(&forecast->shape, step, step->rows));
        /* Several replicas of attention exchange the partials of their rows whole. */
        seconds += forecast->shape.attention_replicas > 1
                       ? exchange_s(hosts, devices, tp, parts)
                       : sum_s(hosts, devices, tp, parts, elements);
        for (uint32_t s = 0; s < tp; s++)
            parts[s] = roofline_partial_bytes_ffn(config, &slices[s], layer, step->rows);
        seconds += sum_s(hosts, devices, tp, parts, elements);
        for (int second = 0; second < 2; second++) {
            for (uint32_t s = 0; s < tp; s++)
                parts[s] = roofline_projection_bytes(config, &slices[s], layer, second != 0,
                                                     step->rows);
            seconds += exchange_s(hosts, devices, tp, parts);
        }
    }
    if (stage + 1 < forecast->shape.stages)
        return seconds + pass_s(hosts, devices, devices + tp, tp,
                                4.0 * step->rows * model_residual(config));
    return seconds + gather_s(hosts, config, forecast, step->logit_rows);
}
