/* adapter_places.h: where in the picture adapters act: box=, mask= and prompt= of -a. */
#ifndef WEFT_CLI_ADAPTER_PLACES_H
#define WEFT_CLI_ADAPTER_PLACES_H

#include "making.h"

/* Into m->where and m->use (where, prompt). ERR_MISMATCH where a mask is not the file that the picture of --like was made with. */
int adapter_places_read(struct making *m, struct err *err);
/* Where each acted in the i-th picture of the generator, into FOLDER/STEM-NAME.png, STEM being that of path: im, dark where
 * it did not; and into STEM-NAME-words.png how much places attended to its words. Those that acted everywhere have none, nor
 * those whose words nobody looked for. */
int adapter_places_draw(const struct making *m, int i, const struct image *im, const char *folder,
                        const char *path, struct err *err);

#endif
