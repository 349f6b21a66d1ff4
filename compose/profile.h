/* profile.h: how much of what an adapter draws is fine detail, which CMLoRA orders adapters by.
 *
 * Of a latent x [h*w, c], f its mean over channels, a = |FFT2(f)| and p(r) the mean of a over the frequencies
 * (u, v) with floor(sqrt(u^2 + v^2)) = r (u from -h/2, v from -w/2), q(r) = p(r) / max p:
 *
 *     H = mean of q(r) over r >= cut * r_max,   r_max = floor(sqrt((h/2)^2 + (w/2)^2))
 *
 * after CMLoRA (Zou et al. 2025), whose cut is 0.2. How H falls from one step to a later one is the paper's
 * amplitude change of high frequencies.
 */
#ifndef WEFT_PROFILE_H
#define WEFT_PROFILE_H

#include "unet/err.h"

#define PROFILE_CUT 0.2

/* x [h*w, c] on the host; cut 0 to 1. Radii without a frequency count nowhere. */
int profile_high(const float *x, int h, int w, int c, double cut, double *high, struct err *err);

#endif
