/* torch files without torch: values against torch's own (tests/golden/torch_files.py), and what hostile
 * and damaged files are told. */
#include "store/pickle.h"
#include "store/tensor_file.h"
#include "store/zip.h"
#include "tests/shared.h"
#include "unet/file.h"
#include "unet/hash.h"

#include <limits.h>
#include <string.h>
#include <zlib.h>

#define OWN "tests/golden/data/torch/"

/* ---- against torch --------------------------------------------------------------------------- */

/* SHA-256 of "NAME DTYPE SHAPE\n" and the values of each tensor. */
static void digest(const struct tensor_file *f, char hex[HASH_HEX])
{
    struct hash *h = NULL;
    struct err err;
    char head[1400], shape[128];
    cr_assert_eq(hash_new(&h, &err), 0);
    for (size_t i = 0; i < tensor_file_count(f); i++) {
        const struct array *a = tensor_file_at(f, i);
        int n = snprintf(head, sizeof head, "%s %s %s\n", tensor_file_name(f, i),
                         dtype_name(a->dtype), array_shape(a, shape, sizeof shape));
        hash_add(h, head, (size_t)n);
        hash_add(h, a->data, array_count(a) * dtype_bits(a->dtype) / 8);
        cr_assert_eq(tensor_file_find(f, tensor_file_name(f, i)), a);
    }
    hash_end(h, hex);
}

static void check_golden(char *line)
{
    char path[PATH_MAX], hex[HASH_HEX], *field[5] = {NULL}, *save = NULL;
    struct tensor_file *f = NULL;
    struct err err;
    size_t size = 0, total = 0;
    for (int i = 0; i < 5; i++)
        cr_assert((field[i] = strtok_r(i ? NULL : line, "\t", &save)) != NULL);
    if (strchr(field[0], '/'))
        shared_path(path, sizeof path, field[0]);
    else
        snprintf(path, sizeof path, OWN "%s", field[0]);
    cr_assert_eq(tensor_file_open(&f, path, &err), 0, "%s", err.msg);
    cr_expect_str_eq(tensor_file_container(f), field[1], "%s", path);
    cr_expect_eq(tensor_file_count(f), strtoul(field[2], NULL, 10), "%s", path);
    cr_expect_eq(tensor_file_metadata_count(f), strtoul(field[3], NULL, 10), "%s: %zu", path,
                 tensor_file_metadata_count(f));
    digest(f, hex);
    cr_expect_str_eq(hex, field[4], "%s: other tensors than torch's", path);
    /* the data is the tensors end to end */
    const char *data = tensor_file_data(f, &size);
    for (size_t i = 0; i < tensor_file_count(f); i++) {
        const struct array *a = tensor_file_at(f, i);
        cr_assert_eq((const char *)a->data, data + total);
        total += array_count(a) * dtype_bits(a->dtype) / 8;
    }
    cr_expect_eq(total, size);
    tensor_file_close(f);
}

/* Lines of golden.txt that are about files of ours, or of others. */
static int check_goldens(bool outside)
{
    char *text = NULL, *save = NULL;
    struct err err;
    int n = 0;
    cr_assert_eq(file_read(&text, NULL, OWN "golden.txt", 1 << 20, &err), 0, "%s", err.msg);
    for (char *l = strtok_r(text, "\n", &save); l; l = strtok_r(NULL, "\n", &save)) {
        bool has_folder = memchr(l, '/', strcspn(l, "\t")) != NULL;
        if (has_folder == outside) {
            check_golden(l);
            n++;
        }
    }
    free(text);
    return n;
}

Test(torch_file, reads_what_torch_reads)
{
    cr_expect_eq(check_goldens(false), 6);
}

Test(torch_file, reads_files_of_other_people)
{
    char path[PATH_MAX];
    shared_path(path, sizeof path, "adapters");
    cr_expect_eq(check_goldens(true), 29);
}

Test(torch_file, names_and_metadata)
{
    struct tensor_file *f = NULL;
    struct err err;
    cr_assert_eq(tensor_file_open(&f, OWN "zip.pt", &err), 0, "%s", err.msg);
    static const char *const meta[][2] = {
        {"step", "-12"}, {"name", "a name"}, {"big", "1099511627776"},       {"yes", "true"},
        {"size.1", "2"}, {"two.parts", "x"}, {"rate", "0.10000000000000001"}};
    for (size_t i = 0; i < sizeof meta / sizeof *meta; i++)
        cr_expect_str_eq(tensor_file_metadata(f, meta[i][0]), meta[i][1]);
    cr_expect_null(tensor_file_metadata(f, "nothing"));
    cr_expect(tensor_file_find(f, "list.1.1.deep") && tensor_file_find(f, "tensor"));
    const struct array *a = tensor_file_find(f, "wide");
    float v[12];
    cr_assert(a && array_count(a) == 12);
    array_to_f32(a, v);
    for (int i = 0; i < 12; i++)
        cr_expect_eq(v[i], 1.5f);
    cr_expect_null(tensor_file_find(f, "a.b"));
    tensor_file_close(f);
}

/* ---- what hostile files are told ------------------------------------------------------------- */

static void check_refusal(const char *what, const void *bytes, size_t n, const char *phrase)
{
    struct tensor_file *f = NULL;
    struct err err = {0};
    void *copy = malloc(n + 1); /* so that a sanitizer sees a read beyond the end */
    copy = realloc(copy, n ? n : 1);
    memcpy(copy, bytes, n);
    int rc = tensor_file_parse(&f, copy, n, &err);
    cr_expect_lt(rc, 0, "%s was accepted", what);
    cr_expect_null(f);
    cr_expect(strstr(err.msg, phrase), "%s\nsays: %s\nnot: %s", what, err.msg, phrase);
    tensor_file_close(f);
    free(copy);
}

/* Every file of picklescan's tests; "" where it is to be read. The file that would prove that something
 * was executed must not be there afterwards. */
Test(torch_file, picklescan)
{
    static const struct {
        const char *name, *phrase;
    } files[] = {
        {"data/benign0_v0.pkl", "a pickle, but not one of torch's"},
        {"data/benign0_v3.pkl", "a pickle, but not one of torch's"},
        {"data/benign0_v4.pkl", "a pickle, but not one of torch's"},
        {"data/broken_model.pkl", "asks to run builtins.exec: refused"},
        {"data/malicious-invalid-bytes.pkl", "asks to run os.system: refused"},
        {"data/malicious1.zip", "asks to run builtins.eval: refused"},
        {"data/malicious10.pkl", "asks to run __builtin__.exec: refused"},
        {"data/malicious1_central_directory.zip", "directory says 'data.pkl' where the entry says"},
        {"data/malicious1_v0.pkl", "asks to run __builtin__.eval: refused"},
        {"data/malicious1_v3.pkl", "asks to run builtins.eval: refused"},
        {"data/malicious1_v4.pkl", "asks to run builtins.eval: refused"},
        {"data/malicious1_wrong_ext.zip", "no data.pkl in it"},
        {"data/malicious3.pkl", "asks to run httplib.HTTPSConnection: refused"},
        {"data/new_pytorch_model.bin", ""},
        {"data/pytorch_magic_bypass.pt", "asks to run __builtin__.eval: refused"},
        {"data/pytorch_model.bin", ""},
        {"data2/GHSA-jgw4-cr84-mqxg.bin",
         "asks to run asyncio.unix_events._UnixSubprocessTransport._start: refused"},
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char name[200], path[PATH_MAX];
        struct tensor_file *f = NULL;
        struct err err = {0};
        snprintf(name, sizeof name, "containers/mmaitre314+picklescan/tests/%s", files[i].name);
        int rc = tensor_file_open(&f, shared_path(path, sizeof path, name), &err);
        cr_expect_eq(rc == 0, !*files[i].phrase, "%s: %s", name, rc ? err.msg : "accepted");
        if (rc < 0)
            cr_expect(strstr(err.msg, files[i].phrase), "%s: %s", name, err.msg);
        tensor_file_close(f);
    }
    cr_expect_eq(file_kind("my_file.txt"), 0, "broken_model.pkl was executed");
}

/* A safetensors header that is as long as a pickle's head looks, and begins with white space. */
Test(torch_file, headers_that_look_like_pickles)
{
    char bytes[8 + 0x280] = {(char)0x80, 2};
    struct tensor_file *f = NULL;
    struct err err;
    memset(bytes + 8, ' ', sizeof bytes - 8);
    memcpy(bytes + 8, "\n{}", 3);
    cr_expect_eq(tensor_file_parse(&f, bytes, sizeof bytes, &err), 0, "%s", err.msg);
    tensor_file_close(f);
}

#define REFUSED(bytes, phrase) check_refusal(#bytes, bytes, sizeof(bytes) - 1, phrase)

Test(torch_file, refuses_what_would_run)
{
    REFUSED("\x80\x02"
            "cos\nsystem\n.",
            "asks to run os.system");
    REFUSED("\x80\x02"
            "ctorch\nload\n.",
            "asks to run torch.load");
    REFUSED("\x80\x02"
            "ctorch.storage\n_load_from_bytes\n.",
            "torch.storage._load_from_bytes");
    REFUSED("\x80\x02"
            "ccollections\nOrderedDict.__init__\n.",
            "OrderedDict.__init__");
    REFUSED("\x80\x04\x8c\x05posix\x8c\x06system\x93.", "asks to run posix.system");
    REFUSED("\x80\x02(iposix\nsystem\n.", "asks to run posix.system");
    REFUSED("\x80\x02"
            "c\x1b[2J\nx\n.",
            "asks to run ?[2J.x");
    REFUSED("\x80\x02(o.", "(OBJ)");
    REFUSED("\x80\x02)\x92.", "(NEWOBJ_EX)");
    REFUSED("\x80\x02\x82\x01.", "(EXT1)");
    REFUSED("\x80\x02P1\n.", "(PERSID)");
    REFUSED("\x80\x02\x8e.", "(BINBYTES8)");
    REFUSED("\x80\x02"
            "ccollections\nOrderedDict\n)\x81.",
            "as torch never does");
    REFUSED("\x80\x02"
            "ctorch\nFloatStorage\n)R.",
            "calls torch.FloatStorage as torch never does");
    REFUSED("\x80\x02"
            "ccollections\nOrderedDict\n]\x85R.",
            "as torch never does");
}

Test(torch_file, refuses_damaged_pickles)
{
    REFUSED("\x80\x02]", "cut short");
    REFUSED("\x80\x02X\xff\xff\xff\x7f"
            "a.",
            "cut short");
    REFUSED("\x80\x06N.", "protocol 6");
    REFUSED("\x80\x02\xff.", "an opcode that Python does not have");
    REFUSED("\x80\x02.", "its stack is empty");
    REFUSED("\x80\x02(.", "its stack is empty");
    REFUSED("\x80\x02NN.", "leaves something behind");
    REFUSED("\x80\x02t.", "a mark is missing");
    REFUSED("\x80\x02}NNNe.", "a mark is missing");
    REFUSED("\x80\x02N(Ne.", "appends to what is no list");
    REFUSED("\x80\x02}(Nu.", "a key that has no value");
    REFUSED("\x80\x02](N(e.", "appends to what is no list");
    REFUSED("\x80\x02NNs.", "sets keys of what is no dict");
    REFUSED("\x80\x02h\x05.", "recalls what it never had");
    REFUSED("\x80\x02(q\x05.", "cannot remember");
    REFUSED("\x80\x02Nr\xff\xff\xff\xff.", "cannot remember");
    REFUSED("\x80\x02NNR.", "calls what is no function");
    REFUSED("\x80\x02NQ.", "no storage");
    REFUSED("\x80\x02]Nb.", "attributes");
    REFUSED("\x80\x02I12x\n.", "a number it cannot be");
    REFUSED("\x80\x02Sx\n.", "without quotes");
    REFUSED("\x80\x02Vx.", "no end");
    REFUSED("\x80\x02\x4e\x86.", "its stack is empty");
    REFUSED("\x80\x02\x8a\x0al\xfc\x9c"
            "F\xf9 j\xa8P\x18.",
            "not one of torch's");
}

/* ---- bombs ------------------------------------------------------------------------------------- */

struct text {
    char *at;
    size_t n;
};

static void put(struct text *t, const void *p, size_t n)
{
    memcpy(t->at + t->n, p, n);
    t->n += n;
}
#define PUT(t, bytes) put(t, bytes, sizeof(bytes) - 1)

/* The older form around an object, which has no tensors. */
static void check_bomb(const char *what, const struct text *object, const char *phrase)
{
    struct text t = {malloc(object->n + 200), 0};
    PUT(&t, "\x80\2\x8a\x0al\xfc\x9c"
            "F\xf9 j\xa8P\x19.\x80\2M\xe9\3.");
    PUT(&t, "\x80\2}X\x0d\0\0\0little_endian\x88s.");
    put(&t, object->at, object->n);
    PUT(&t, "\x80\2].");
    check_refusal(what, t.at, t.n, phrase);
    free(t.at);
}

/* Ten lists of ten lists of ten … of one value: a few hundred bytes that stand for 10^20 values. */
Test(torch_file, laughs, .timeout = 20)
{
    struct text t = {malloc(4000), 0};
    PUT(&t, "\x80\2Nq\0");
    for (int i = 0; i < 20; i++) {
        const char get[2] = {'h', (char)i}, keep[2] = {'q', (char)(i + 1)};
        PUT(&t, "0](");
        for (int k = 0; k < 10; k++)
            put(&t, get, 2);
        PUT(&t, "e");
        put(&t, keep, 2);
    }
    PUT(&t, ".");
    check_bomb("ten of ten of ten", &t, "hold too much");
    free(t.at);
}

/* A text of a megabyte that a thousand names share. */
Test(torch_file, one_text_many_times, .timeout = 20)
{
    const size_t size = 1 << 20;
    struct text t = {malloc(size + 20000), 0};
    PUT(&t, "\x80\2X\0\0\x10\0");
    memset(t.at + t.n, 'x', size);
    t.n += size;
    PUT(&t, "q\0"
            "0](");
    for (int i = 0; i < 1000; i++)
        PUT(&t, "h\0");
    PUT(&t, "e.");
    check_bomb("a thousand megabytes", &t, "names and texts have more than");
    free(t.at);
}

/* A dict that takes another's items, which took its: each round doubles both. */
Test(torch_file, attributes_that_double, .timeout = 20)
{
    struct text t = {malloc(20000), 0};
    PUT(&t, "\x80\2}K\1K\1sq\0}K\2K\2sq\1(");
    for (int i = 0; i < 200; i++) {
        PUT(&t, "h\0}X\x0b\0\0\0_parametersh\1sb");
        PUT(&t, "h\1}X\x0b\0\0\0_parametersh\0sb");
    }
    PUT(&t, "l.");
    check_bomb("doubled attributes", &t, "more than 4000000 items");
    free(t.at);
}

/* A list that holds itself, and one that is 100 deep. */
Test(torch_file, endless_lists)
{
    static const char self[] = "\x80\2]q\0h\0a.";
    struct text t = {malloc(1000), 0};
    struct text loop = {(char *)self, sizeof self - 1};
    check_bomb("a list in itself", &loop, "more than 64 deep");
    PUT(&t, "\x80\2");
    for (int i = 0; i < 100; i++)
        PUT(&t, "]");
    for (int i = 0; i < 99; i++)
        PUT(&t, "a");
    PUT(&t, ".");
    check_bomb("100 lists in each other", &t, "more than 64 deep");
    free(t.at);
}
