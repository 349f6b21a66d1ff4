/* jobs_read.h: files of jobs, each of which is a picture's options.
 *
 * JSON, an object a line: {"prompt": "a red kite", "adapter": ["kite:0.8", "neon"], "seed": 7, "repeat": 4,
 *                          "grid": {"cfg": [3, 5], "compose": ["merge", "gated"]}, "id": "kites"}
 * CSV, whose first line names the columns:  id,prompt,adapter,adapter,seed
 * Text, as A1111's "prompts from file" has it: a prompt a line, or --prompt "..." --steps 20 --cfg_scale 5;
 * a line that begins with a name behind two dashes is options, be the name unknown, which makes it a bad one
 *
 * Names are those of weft render's options, and "prompt"; beside them stand "id", "repeat" (so many, whose seeds count
 * up where one is given) and "grid" (lists, multiplied out, the last fastest; repeats within). Nothing is looked up here:
 * whether an option is one, or an adapter there, is for who takes job_arguments.
 *
 *     struct jobs j = {0};
 *     rc = jobs_read(&j, "jobs.jsonl", NULL, bad_line, user, &err);
 *     for (int i = 0; i < j.n; i++)
 *         rc = job_arguments(&j.at[i], "batch", &argv, &argc, &err);
 *     jobs_release(&j);
 */
#ifndef WEFT_JOBS_READ_H
#define WEFT_JOBS_READ_H

#include "unet/err.h"

#include <jansson.h>

struct job {
    int line; /* where it begins, counted from 1 */
    char *id; /* as the file has it, with "-N" behind it where there are several; NULL: none */
    json_t *options; /* an object of its own; "id", "repeat" and "grid" are gone from it */
};
struct jobs {
    struct job *at;
    int n, room;
};

/* Told of a line that makes no job. why says no line and no file. */
typedef void jobs_bad(void *user, int line, const char *why);

/* Adds the jobs of a file to j. path "-": standard input. format: "jsonl", "csv" or "text"; NULL: by its ending
 * (.jsonl, .ndjson, .json; .csv; .txt), else by its first letter. Bad lines go to bad (NULL: to nobody) and are left
 * out whole; what is returned is below 0 only where the file cannot be read, or the first line of a CSV file names no
 * columns. The message names the file. Release j after any result. */
int jobs_read(struct jobs *j, const char *path, const char *format, jobs_bad *bad, void *user,
              struct err *err);
void jobs_release(struct jobs *j);

/* The job as a command line: argv[0] is command, options stand as "--name=value", then "--" and the prompt, if it has one.
 * A list is an option given several times, but [w, h] of "size" is "--size=WxH"; true is "--name" alone; false and null
 * are nothing. *argv ends with a NULL. Release with job_arguments_free, which takes NULL. */
int job_arguments(const struct job *j, const char *command, char ***argv, int *argc,
                  struct err *err);
void job_arguments_free(char **argv);

#endif
