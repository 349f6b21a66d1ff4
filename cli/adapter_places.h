/* adapter_places.h: where in the picture adapters act: box= and mask= of -a. */
#ifndef WEFT_CLI_ADAPTER_PLACES_H
#define WEFT_CLI_ADAPTER_PLACES_H

#include "making.h"

/* Into m->where and m->use (where). ERR_MISMATCH where a mask is not the file that the picture of --like was made with. */
int adapter_places_read(struct making *m, struct err *err);
/* Where each acted in the i-th picture of the generator, into FOLDER/STEM-NAME.png, STEM being that of path: im, dark where
 * it did not. Those that acted everywhere have none. */
int adapter_places_draw(const struct making *m, int i, const struct image *im, const char *folder,
                        const char *path, struct err *err);

#endif
