#include "edgeblt.h"

#ifndef EDGEBLT_VERSION
#error "EDGEBLT_VERSION is set by CMakeLists.txt"
#endif

const char* edgeblt_version(void) { return EDGEBLT_VERSION; }
