/* A spread panel of a form with runs, whose scales are decoded once for several tiles of rows
 * (leaf.h, open_spread). Here only its frame is written: the first tile meets the scales on its way
 * through the panel, where they cost no second reading. Included once by each vector level's file,
 * behind panel.inc.h. */

static size_t run_scale_bytes(const kpart_t *part)
{
    return PANEL * sizeof(float) * (FORM_HAS_MINIMUMS(part->form) ? 2 : 1);
}

static size_t runs_spread_bytes(const kpart_t *part)
{
    return part->input->n_leaves * (size_t)SPREAD_FRONT +
           part->input->n_segs * run_scale_bytes(part);
}

static void runs_spread(const kpart_t *part, const uint8_t *panel, uint8_t *to)
{
    for (uint32_t l = 0; l < part->input->n_leaves; l++) {
        const kleaf_t *leaf = &part->input->leaves[l];
        memcpy(to, &panel, sizeof panel);
        to += SPREAD_FRONT + (leaf->seg_end - leaf->seg_first) * run_scale_bytes(part);
        panel += run_leaf_bytes(part, leaf);
    }
}

/* Of a part with one leaf, whose first tile has been multiplied. */
static inline scale_floats_t runs_spread_scales(const kpart_t *part, const uint8_t *spread)
{
    return (scale_floats_t){spread + SPREAD_FRONT, run_scale_bytes(part)};
}
