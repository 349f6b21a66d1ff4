/* gallery.h: what a folder of pictures says of itself: index.jsonl, a page for a browser, sheets.
 *
 *     gallery_write("out", q, "jobs.jsonl", &err);
 *     gallery_sheet("out", q, 0, &n, &err);
 *
 * index.jsonl has a line a picture and a line a failure, in the order of the jobs; index.html with pictures.js shows them,
 * and those that wait. Each appears whole, in place of what was there.
 */
#ifndef WEFT_GALLERY_H
#define WEFT_GALLERY_H

#include "store/queue.h"

#include <jansson.h>

/* All that the queue knows of a job. */
json_t *gallery_record(const struct queue_job *j);
int gallery_write(const char *folder, struct queue *q, const char *title, struct err *err);
/* All pictures as sheet.png, sheet-2.png, ..., so many columns a sheet (0: as many as suit). *n: how many sheets. */
int gallery_sheet(const char *folder, struct queue *q, int columns, int *n, struct err *err);

#endif
