// What libedgeblt exports. Everything else in the library is hidden.
#ifndef EDGEBLT_H
#define EDGEBLT_H

#define EDGEBLT_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

// The package version the library was built from, e.g. "0.1.0"; a static string.
EDGEBLT_API const char* edgeblt_version(void);

#ifdef __cplusplus
}
#endif

#endif
