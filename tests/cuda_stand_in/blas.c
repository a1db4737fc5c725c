/* Stands in for libcublas.so and libcublasLt.so: products are not computed. */
#include <stdlib.h>

static int handle(void **handle) {
    *handle = malloc(64);
    return 0;
}

int cublasCreate_v2(void **blas) { return handle(blas); }
int cublasGetMathMode(void *blas, int *mode) { return *mode = 0; }
const char *cublasGetStatusName(int status) { return "stand-in"; }
const char *cublasGetStatusString(int status) { return "stand-in"; }
int cublasLtCreate(void **blas) { return handle(blas); }
