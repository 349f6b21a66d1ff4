/* labels.h: words beside dots, so that no word lies on another or on a dot. Pure geometry: pixels in,
 * pixels out; nothing is drawn here (scatter.h does).
 *
 *     struct label l[] = {{.x = 40, .y = 30, .w = 60, .h = 15}, …};      // most important first
 *     struct labels_room room = {.w = 800, .h = 600, .radius = 4, .gap = 3};
 *     labels_spread(l, n, &room);                  // dots move apart, where their words need room
 *     labels_place(l, n, &room, &shown, &err);     // l[i].left, top: where a word that is shown stands
 */
#ifndef WEFT_LABELS_H
#define WEFT_LABELS_H

#include "err.h"

#include <stdbool.h>

struct label {
    float x, y;   /* the dot's centre */
    int w, h;     /* the word's box */
    int group;    /* those of different groups keep room->moat between them */
    bool heading; /* there is no dot: the word itself is centred there */
    /* labels_place fills these in */
    bool shown;
    int left, top; /* the box's corner */
    bool line;     /* the word is away from its dot: a line leads from there to `end` */
    float end[2];  /* x, y on the box's edge */
};

struct labels_room {
    int w, h;     /* everything stays within 0 … w, 0 … h */
    float radius; /* of a dot */
    int gap;      /* between a word and what stands left and right of it */
    int moat;     /* between groups, as far as there is room; 0: as between all */
};

/* Moves dots until each has the room for its own circle and, for as many of the first as that is
 * possible for, of its word at its right. First along the line between two that are too near, as PRISM does
 * (Gansner, Hu: Efficient, proximity-preserving node overlap removal, 2010), so that a crowd grows in all
 * directions; then the shorter way. Ends with whole numbers in x and y. */
void labels_spread(struct label *l, int n, const struct labels_room *room);

/* Gives words their places, the first ones first: right of the dot, else left, above, below, at a
 * corner; those left over then further off with a line, if within a few words' height there is a place
 * to which a line leads that crosses nothing. *shown: how many have a place, headings left out. Takes a
 * byte for each pixel of the room meanwhile. */
int labels_place(struct label *l, int n, const struct labels_room *room, int *shown,
                 struct err *err);

#endif
