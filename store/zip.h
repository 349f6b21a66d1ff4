/* zip.h: the entries of a zip file in memory, strictly, for torch's files.
 *
 * Everything is checked before an entry is handed out: the central directory against each local header,
 * every offset, that no two entries share bytes, that no name is absolute or climbs with "..", and that
 * nothing expands beyond bounds. Encrypted entries, several disks and methods other than stored and
 * deflate are refused by name. zip64 is read.
 *
 *     struct zip z;
 *     zip_open(&z, bytes, size, &err);
 *     const struct zip_entry *e = zip_find(&z, "archive/data.pkl");
 *     zip_read(&z, e, &data, &owned, &err);     // data is in the file, or in owned
 *     free(owned);
 *     zip_release(&z);
 */
#ifndef WEFT_ZIP_H
#define WEFT_ZIP_H

#include "unet/err.h"

#include <stdint.h>

struct zip_entry {
    char *name; /* owned */
    int method; /* 0 stored, 8 deflate */
    uint32_t crc;
    uint64_t packed, size; /* bytes in the file and expanded */
    uint64_t header, data; /* offsets of the local header and of the bytes */
};
struct zip {
    const uint8_t *bytes;
    size_t size;
    struct zip_entry *entry; /* [n], by name */
    size_t n;
};

/* bytes are kept until zip_release. Release it also after an error. */
int zip_open(struct zip *z, const void *bytes, size_t size, struct err *err);
void zip_release(struct zip *z);
/* NULL: no entry of that name. */
const struct zip_entry *zip_find(const struct zip *z, const char *name);
/* e->size bytes, whose checksum is right. *owned is NULL for a stored entry, else to be freed. */
int zip_read(const struct zip *z, const struct zip_entry *e, const void **data, void **owned,
             struct err *err);

#endif
