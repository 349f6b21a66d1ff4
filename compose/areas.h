/* areas.h: the regions of a picture (unet/regions.h): one for each adapter that has a place, with a text of its own.
 *
 *     struct areas *a;
 *     areas_open(&a, &passes, &err);               // texts join the conditions, places come of use.where
 *     areas_follow(a);                             // those without one: of the masks of a first phase
 *     areas_rows(a, &run, at, n);                  // before a pass over those rows, in their batch
 *     areas_close(a);
 *
 * A region's text is use.prompt, or of one without a place of its own the picture's prompt, or the clause of the prompt (between commas, ends of sentences and "and") that has the
 * adapter's words, or the first of those; read, like its keys and values and what comes out of
 * its cross attention, with that adapter and those that are meant for the whole picture. The negative prompt's row attends
 * to the negative prompt in all regions, read likewise.
 */
#ifndef WEFT_AREAS_H
#define WEFT_AREAS_H

#include "passes.h"

#include "unet/regions.h"

struct place;
struct areas {
    struct passes *of;
    struct regions *g;
    int n;
    int adapter[REGIONS_MAX], text[REGIONS_MAX]; /* whose each is; index of its text */
    struct tensor *hidden;                       /* [n * layers]: texts of the rows in hand */
    struct branch *branch;  /* [n + 1, rows, adapters]: the last are those of `rest` */
    bool free[REGIONS_MAX]; /* it has no place of its own */
};
int areas_open(struct areas **out, struct passes *of, struct err *err);
void areas_close(struct areas *a);
/* Those without a place of their own act in all of the picture until areas_follow. */
void areas_restart(struct areas *a);
void areas_follow(struct areas *a);
/* The region of an adapter, -1: it has none. */
int areas_of(const struct areas *a, int adapter);
/* Sets what each region attends to, and with which branches, for n rows of one action, and puts the regions into the run. */
void areas_rows(struct areas *a, struct run *r, const struct place *at, int n);

#endif
