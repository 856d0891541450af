/* The answer of `shoal plan` as a JSON object and as lines. */
#ifndef SHOAL_CLI_PLAN_REPORT_H
#define SHOAL_CLI_PLAN_REPORT_H

#include <jansson.h>

#include "common/model/forecast.h"

/* Shape, ranks, cache and, of a plan that fits, the roofline. */
void plan_report_forecast(json_t *report, const forecast_question_t *question,
                          const hosts_file_t *hosts, const forecast_t *forecast);
void plan_report_advice(json_t *report, const forecast_advice_t *advice);

void plan_report_print(const json_t *report);

#endif
