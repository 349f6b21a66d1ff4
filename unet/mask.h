/* mask.h: where in a picture an adapter acts: a number a place, 1 in full, 0 not at all.
 *
 *     struct mask *m;
 *     mask_new(&m, dev, &err);
 *     branch.mask = m;                       // while measuring, the run finds out which sizes there are
 *     mask_set(m, values, 16, 16);           // between passes, as often as wanted
 *     mask_free(m);
 *
 * What an adapter adds at a site of h x w places is multiplied by the mask at that size: means of the values that a place
 * covers where it is smaller, between the nearest ones where it is larger (torch's area and bilinear). Sites whose rows
 * are no places of the picture (keys and values of texts, the time) are left alone.
 */
#ifndef WEFT_MASK_H
#define WEFT_MASK_H

#include "backend.h"

struct mask;
int mask_new(struct mask **out, struct device *dev, struct err *err);
void mask_free(struct mask *m);
/* values [h, w] */
void mask_set(struct mask *m, const float *values, int h, int w);
/* The mask at one size, [h*w] in device memory, all 1 before mask_set. With `more` a size that was never asked for is
 * added, else it is NULL; NULL too without memory. */
const float *mask_at(struct mask *m, int h, int w, bool more, struct err *err);
/* to [h, w] from values [from_h, from_w], as above. */
void mask_resample(float *to, int h, int w, const float *from, int from_h, int from_w);

#endif
