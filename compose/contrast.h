/* contrast.h: losses that say how places ought to be shared between concepts, with their gradients. All in plain numbers.
 *
 * contrast_loss, CLoRA's (Meral et al. 2025): maps of the same concept are to be alike, of others to differ. With
 * e_i = (m_i - min m_i), z_i = e_i / |e_i|, s_ij = z_i z_j, over ordered pairs (a, p) of one label
 *
 *     L = mean of -log( e^(s_ap / tau) / (e^(s_ap / tau) + sum over n of another label e^(s_an / tau)) )      (NT-Xent)
 *
 * (min-max scaling's maximum drops out of the cosine.)
 *
 * layout_loss, LoRA-Composer's (Yang et al. 2024, the released code's weights): of region i with cells M, smoothed map
 * s = kernel * m, k = max(1, .2 |M|) and G a Gaussian over its rows and columns, for each of its tokens
 *
 *     enhance 8 max(0, 1 - mean of the k largest of s M G)
 *     fill    2 (mean over columns of |max s M - max M|) + 2 (the same over rows)
 *     apart   10 max(0, mean of the k largest of S[q, k], q in M, k not), once a region
 */
#ifndef WEFT_CONTRAST_H
#define WEFT_CONTRAST_H

#include <stddef.h>

/* Doubles of room that each needs. */
size_t contrast_room(int n, size_t places);
size_t layout_room(int h, int w);

/* m [n, places], label[n]; back [n, places] becomes dL/dm. 0 where no two have one label. */
double contrast_loss(const float *m, const int *label, int n, size_t places, double tau,
                     float *back, double *room);

enum { LAYOUT_ENHANCE, LAYOUT_FILL, LAYOUT_APART, LAYOUT_LOSSES };

/* One region at h x w: in [h*w] not 0 where it is; map [tokens, h*w], self [h*w, h*w] rows being queries, or NULL. Adds the
 * gradients of factor[i] times each loss to back and self_back (of the maps' sizes), and the losses, times factor, to loss. A
 * region of no place has none. */
void layout_loss(double loss[LAYOUT_LOSSES], const double factor[LAYOUT_LOSSES], int h, int w,
                 const unsigned char *in, const float *map, int tokens, float *back,
                 const float *self, float *self_back, double *room);

#endif
