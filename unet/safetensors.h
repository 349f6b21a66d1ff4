/* safetensors.h: reads safetensors files, strictly, without copying.
 *
 * The file is mapped; every array is a view into the map and lives until safetensors_close. All
 * checks of the reference reader are made before anything is handed out (no holes, no overlap, no
 * size that does not fit its shape, nothing after the end), and a name that occurs twice is
 * refused. Nothing is checked about the values. A message has the reference's error in plain words:
 * header too small, header too large, invalid header length, invalid header, unreadable header,
 * invalid offset, size overflow, misaligned, invalid tensor size, incomplete buffer.
 *
 * Beyond the reference we refuse: a name twice, a name with a NUL, more than 8 dimensions, sizes
 * from 2^63 up, and headers of more than a million JSON values (a hundred thousand tensors), so
 * that a hostile one costs at most about 3 seconds and 300 MB. A file that another program cuts
 * short while it is mapped ends the process with SIGBUS, as with any map; replace by rename.
 *
 *     struct safetensors *st;
 *     if (safetensors_open(&st, path, &err) < 0) …
 *     const struct array *a = safetensors_find(st, "conv_in.weight");
 *     safetensors_close(st);
 */
#ifndef WEFT_SAFETENSORS_H
#define WEFT_SAFETENSORS_H

#include "err.h"
#include "tensor.h"

struct safetensors;

/* Maps and checks path. The message begins with the path. Close with safetensors_close. */
int safetensors_open(struct safetensors **out, const char *path, struct err *err);
/* The same on bytes in memory, which are kept until safetensors_close and must not change. */
int safetensors_parse(struct safetensors **out, const void *bytes, size_t size, struct err *err);
void safetensors_close(struct safetensors *st);

/* Arrays in order of their place in the file. */
size_t safetensors_count(const struct safetensors *st);
const char *safetensors_name(const struct safetensors *st, size_t i);
const struct array *safetensors_at(const struct safetensors *st, size_t i);
/* The array's place in that order, or -1; and the array of that name, or NULL. */
ptrdiff_t safetensors_index(const struct safetensors *st, const char *name);
const struct array *safetensors_find(const struct safetensors *st, const char *name);

/* The value of a key of __metadata__, or NULL. */
const char *safetensors_metadata(const struct safetensors *st, const char *key);
size_t safetensors_metadata_count(const struct safetensors *st);
void safetensors_metadata_at(const struct safetensors *st, size_t i, const char **key,
                             const char **value);

/* The bytes after the header: what AutoV3 and the data hash are taken over. */
const void *safetensors_data(const struct safetensors *st, size_t *size);

/* One array to be written. */
struct safetensors_item {
    const char *name;
    struct array a;
};
/* Writes a file in the reference writer's form: to a temporary name beside path, synced, renamed.
 * metadata: n_meta pairs key, value, written in this order. What our own reader would refuse is not
 * written. Takes the file's size in memory meanwhile. Nothing is left behind on failure. */
int safetensors_write(const char *path, const struct safetensors_item *item, size_t n,
                      const char *const (*metadata)[2], size_t n_meta, struct err *err);

#endif
