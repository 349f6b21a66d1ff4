/* selftest.cpp: whether the emulator does what it says, and finds what it says it finds. Prints "N passed, N failed". */
#include "selftest.h"

#include "selftest_kernels.h"
#include "selftest_libraries.h"
#include "selftest_misuse.h"

int main(void)
{
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    test_types();
    test_threads();
    test_tiles();
    test_graphs();
    test_runtime();
    test_gemms();
    test_dnn();
    test_kernel_misuse();
    test_runtime_misuse();
    test_library_misuse();
    cudnnDestroy(handle);
    cudaStreamDestroy(stream);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
