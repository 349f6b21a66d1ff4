/* sheet.h: pictures in rows and columns with words beside them. What `weft compare` leaves.
 *
 *     struct sheet s = {.columns = 2, .rows = 1, .w = 512, .h = 512, .picture = both,
 *                       .column = (const char *[]){"none", "merge"}, .title = prompt};
 *     sheet_draw(&out, &s, &err);
 *
 * Words are drawn by FreeType with a font of the system; they are broken at spaces to the width they
 * have, and what does not fit into MAX_LINES ends in an ellipsis.
 */
#ifndef WEFT_SHEET_H
#define WEFT_SHEET_H

#include "image.h"

struct sheet {
    int columns, rows;
    int w, h; /* pixels of a cell; pictures of another size are resampled to it */
    const struct image *picture; /* [rows, columns]; one without pixels leaves its cell empty */
    /* Words, each list or any of its texts may be NULL. UTF-8. */
    const char *title;         /* above everything */
    const char *const *column; /* [columns] above each */
    const char *const *row;    /* [rows] left of each */
    const char *const *label;  /* [rows, columns] under each picture */
};

/* out is filled in; release it. ERR_ARG when it would be larger than a PNG of ours may be, ERR_IO when
 * words are asked for and no font is found. */
int sheet_draw(struct image *out, const struct sheet *s, struct err *err);

#endif
