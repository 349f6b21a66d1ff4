/* job_name.h: what the picture of a job is called: a template in which {n}, {id}, {seed}, {prompt}, {adapters} and {compose}
 * stand for the job's. It may name folders.
 *
 *     rc = job_name_check("{adapters}/{prompt}-{n}", &err);
 *     char *file = job_name("{adapters}/{prompt}-{n}", &request, 17, "kites-3");   // "kite+neon/a-red-kite-00017.png"
 */
#ifndef WEFT_JOB_NAME_H
#define WEFT_JOB_NAME_H

#include "request.h"

enum { JOB_NAME_MAX = 200 }; /* bytes that a name may have */

int job_name_check(const char *name, struct err *err);
/* A new string, relative to the folder of pictures; NULL when there is no memory. */
char *job_name(const char *name, const struct request *r, int64_t place, const char *id);

#endif
