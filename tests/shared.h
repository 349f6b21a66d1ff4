/* shared.h: finds test data that is not part of weft. It lies in ../shared/data, or where the
 * environment variable WEFT_SHARED says. Where it is absent the test is skipped by name.
 *
 *     char path[PATH_MAX];
 *     shared_path(path, sizeof path, "png/bad_images/empty_file.png");
 */
#ifndef WEFT_TESTS_SHARED_H
#define WEFT_TESTS_SHARED_H

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* Writes the path of a file or folder of the outside data into buf and returns buf. */
static inline const char *shared_path(char *buf, size_t size, const char *name)
{
    const char *dir = getenv("WEFT_SHARED");
    snprintf(buf, size, "%s/%s", dir ? dir : "../shared/data", name);
    if (access(buf, R_OK) < 0)
        cr_skip_test("%s is not here", buf);
    return buf;
}

#endif
