/* explain.h: `weft render --explain`: the influence receipt of a picture, told, drawn, and checked.
 *
 *     struct explain e;
 *     explain_begin(&e, &m, &p, &err);            // p will be watched
 *     making_run(&m, &p, 1, &image, &err);
 *     explain_leave_out(&e, &image, &err);        // the same picture without each adapter in turn
 *     explain_draw(&e, "apple.png", &image, &err);
 *     explain_tell(&e);  or  explain_json(&e)
 *     explain_end(&e);
 */
#ifndef WEFT_EXPLAIN_H
#define WEFT_EXPLAIN_H

#include "making.h"

#include "compose/influence.h"

#include <jansson.h>

struct explain {
    struct making *m;
    struct picture p; /* the watched one */
    struct influence in;
    double *
        change; /* [n_use] what leaving it out changes: root mean square of pixels, 0 to 1; NULL: not tried */
    double
        rank; /* Spearman's correlation of influence and change; NAN: fewer than three adapters */
    char *overlay; /* where the maps were drawn, or NULL */
};

/* Release it with explain_end also after an error. */
int explain_begin(struct explain *e, struct making *m, struct picture *p, struct err *err);
void explain_end(struct explain *e);
int explain_leave_out(struct explain *e, const struct image *im, struct err *err);
/* The maps over the picture, in a file beside path: apple-influence.png. */
int explain_draw(struct explain *e, const char *path, const struct image *im, struct err *err);
void explain_tell(const struct explain *e);
/* A new reference. */
json_t *explain_json(const struct explain *e);

#endif
