/* scatter.h: a picture of named dots in the plane, with a legend. What `weft map` leaves.
 *
 *     struct scatter_dot dot[] = {{.x = .2f, .y = -.4f, .name = "watercolour", .kind = 1}, …};
 *     struct scatter s = {.dot = dot, .n = n, .title = "300 adapters", .kind = kinds, .kinds = 4};
 *     scatter_draw(&image, &s, &err);
 *     // s.labelled of them have their name beside them; dot[i].px, py: where in the picture
 *
 * Names never lie on each other or on dots (labels.h). Dots are moved apart where names need room, so places are
 * kept roughly, neighbours mostly. Where there is no room for all names, those of the greatest weight have
 * theirs, and a line under the picture says how many have none.
 */
#ifndef WEFT_SCATTER_H
#define WEFT_SCATTER_H

#include "image.h"

#include <stdbool.h>

/* Kinds that have a colour of their own; all from here on are grey. */
#define SCATTER_COLOURS 12

struct scatter_dot {
    float x, y;       /* right and down; only relations count */
    const char *name; /* UTF-8, one line */
    int kind;         /* row of the legend, which says the colour */
    int group;        /* whose heading stands above it */
    float weight;     /* those of the greatest are named first */
    /* filled in */
    float px, py;  /* pixels in the picture */
    bool labelled; /* its name is shown */
};

struct scatter {
    int w, h; /* pixels; 0: as many as all names need, within reason. Filled in. */
    struct scatter_dot *dot;
    int n;
    const char *title, *note; /* above, and small under it; NULL: none */
    const char *const *kind;  /* [kinds] the legend; a row that is NULL is left out */
    int kinds;
    const char *const *group; /* [groups] headings, NULL: none */
    int groups;
    int labelled; /* filled in */
};

/* out is filled in; release it. ERR_ARG for a picture too small to hold anything, ERR_IO where no font is
 * found. */
int scatter_draw(struct image *out, struct scatter *s, struct err *err);

#endif
