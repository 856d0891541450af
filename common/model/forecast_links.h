/* The part of a forecast that links take: exchanges inside a stage, the rows that go to the next one, and
 * the logits that come together behind the head. Pure. */
#ifndef SHOAL_COMMON_MODEL_FORECAST_LINKS_H
#define SHOAL_COMMON_MODEL_FORECAST_LINKS_H

#include "common/model/forecast.h"
#include "common/model/roofline.h"

/* Seconds of a stage in one step, on the devices of the forecast. `slices` are the shape's tp. */
double forecast_links_s(const forecast_question_t *question, const hosts_file_t *hosts,
                        const forecast_t *forecast, uint32_t stage, const plan_slice_t *slices,
                        const roofline_step_t *step);

#endif
